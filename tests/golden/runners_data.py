"""Golden cases of the data pipeline: crops and resizes, latent encoders, and the published orders."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from harness import Case, Runner
from PIL import Image
from torch import Tensor

from repro.data import images
from repro.data.encoders import EDM2Latents, PixelEncoder
from repro.data.orders import EDMOrder, edm2_order
from repro.diffusion.images import from_uint8


def picture(case: Case, name: str) -> Image.Image:
    """An input of HWC or HW 8-bit values."""
    return Image.fromarray(case.arrays[f"in/{name}"].astype(np.uint8))


def pixels(image: Image.Image) -> npt.NDArray[np.uint8]:
    return np.asarray(image, dtype=np.uint8)


def run_edm_image(case: Case, transform: Callable[[Image.Image, int, int], Image.Image]) -> None:
    # "exact up to 1 grey level" is the case's tolerance of 0.004 of the largest value
    assert case.meta.pop("compare") == "exact up to 1 grey level"
    config = case.config
    case.check("image", pixels(transform(picture(case, "image"), config["width"], config["height"])))


def run_resize(case: Case) -> None:
    run_edm_image(case, lambda image, width, height: images.resize(image, _square(width, height)))


def run_center_crop(case: Case) -> None:
    run_edm_image(case, lambda image, width, height: images.center_crop(image, _square(width, height)))


def run_center_crop_wide(case: Case) -> None:
    run_edm_image(case, images.center_crop_wide)


def run_dhariwal(case: Case) -> None:
    case.check("y", pixels(images.dhariwal(picture(case, "x"), case.config["size"])))


def run_dit_crop(case: Case) -> None:
    case.check("out", pixels(images.dhariwal(picture(case, "image"), case.config["image_size"])))


def run_uvit_images(case: Case) -> None:
    for name, transform in (("imagenet", images.dhariwal), ("celeba", images.celeba), ("coco", images.center_crop)):
        small = pixels(transform(picture(case, name), case.config[f"{name}_size"]))
        case.check(name, from_uint8(torch.from_numpy(small.transpose(2, 0, 1).copy())))


def run_edm_order(case: Case) -> None:
    config = case.config
    order = EDMOrder(config["size"], config["seed"], config["window_size"], config["shuffle"])
    world = config["num_replicas"]
    for rank in range(world):
        count = len(case.arrays[f"out/rank{rank}"])
        case.check(f"rank{rank}", order.indices(0, world * count)[rank::world])


def run_infinite_sampler(case: Case) -> None:
    """EDM's and EDM2's samplers have one name; EDM2's starts at a position and is asked for one rank."""
    if case.meta["kind"] == "dataset":
        run_edm_order(case)
        return
    config = case.config
    positions = config["start_idx"] + config["rank"] + config["num_replicas"] * np.arange(config["n"])
    size = config["size"]
    found = [edm2_order(size, config["seed"], int(p) // size)[int(p) % size] for p in positions]
    case.check("indices", np.array(found))


def run_pixel_encoder(case: Case) -> None:
    encoder = PixelEncoder()
    case.check("latents", encoder.encode(case.input("raw").to(torch.uint8)))
    case.check("pixels", encoder.decode(case.input("x")))


def run_edm2_latents(case: Case) -> None:
    encoder = EDM2Latents()
    x = encoder.encode(case.input("raw"), case.input("noise"))
    case.check("scale", encoder.scale)
    case.check("bias", encoder.bias)
    case.check("latents", x)
    case.check("vae_input", encoder.vae_input(x))
    case.check("pixels", encoder.decode(x, _stand_in_vae))


def _stand_in_vae(z: Tensor) -> Tensor:
    return 1.2 * torch.sigmoid(0.25 * z[:, :3]) - 0.1


def _square(width: int, height: int) -> int:
    assert width == height
    return width


RUNNERS: dict[tuple[str, str], Runner] = {
    ("dataset", "resize"): run_resize,
    ("dataset", "center-crop"): run_center_crop,
    ("dataset", "center-crop-wide"): run_center_crop_wide,
    ("dataset", "InfiniteSampler"): run_infinite_sampler,
    ("schedule", "InfiniteSampler"): run_infinite_sampler,
    ("augment", "center_crop_dhariwal"): run_dhariwal,
    ("augment", "center_crop_arr"): run_dit_crop,
    ("augment", "center_crop_arr, Crop + Resize, center_crop"): run_uvit_images,
    ("augment", "StandardRGBEncoder"): run_pixel_encoder,
    ("augment", "StabilityVAEEncoder"): run_edm2_latents,
}
