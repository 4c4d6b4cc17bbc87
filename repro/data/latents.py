"""Images -> latents through a VAE, stored as each paper's pipeline stores them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repro.data.draws import flip_coins, posterior_noise
from repro.data.encoders import DIT_FACTOR
from repro.data.manifest import Manifest, load_manifest
from repro.data.preparing import Job, Part, Progress, SetPlan, images_a_shard, write_set
from repro.data.shards import check_manifest
from repro.data.sources import Latents
from repro.data.stores import ShardStore
from repro.data.text import Captions
from repro.data.weights import weights_folder
from repro.errors import MissingPrerequisite, UsageError

CHANNELS = {"edm2": 8, "dit": 4, "coco": 8}
SEED = 0  # of the posterior's samples and of the coins that are frozen into a set
WEIGHTS = "diffusion_pytorch_model.safetensors"


class VAE:
    """An `AutoencoderKL` of diffusers, and the sha256 of its weights.

    Args:
        model: the network.
        sha256: of its weights file.
        device: where it runs.
    """

    def __init__(self, model: Any, sha256: str, device: str = "cpu") -> None:
        self.model = model.eval().requires_grad_(False).to(device)
        self.sha256 = sha256
        self.device = torch.device(device)

    @torch.no_grad()
    def moments(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images (N, 3, H, W) float32 -> mean, standard deviation and log-variance, (N, 4, h, w) float32 on the CPU."""
        posterior = self.model.encode(images.to(self.device)).latent_dist
        return posterior.mean.cpu(), posterior.std.cpu(), posterior.logvar.cpu()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(N, 4, h, w) -> (N, 3, H, W) float32: an encoder's `vae` argument."""
        return self.model.decode(latents.to(self.device)).sample.cpu()


def load_vae(place: str, device: str = "auto") -> VAE:
    """Load an AutoencoderKL from a folder or by its hub name; only safetensors.

    Raises:
        MissingPrerequisite: diffusers or the weights are not there.
    """
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise MissingPrerequisite(f"latents need diffusers: pip install 'repro[latents]' ({error})") from error
    folder, sha256 = weights_folder(place, WEIGHTS, ["config.json"])
    model = AutoencoderKL.from_pretrained(str(folder), use_safetensors=True, local_files_only=True)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return VAE(model, sha256, device)


def prepare_latents(
    images_dir: Path,
    data_dir: Path,
    form: str,
    vae: VAE,
    *,
    flip: str = "none",
    captions: Captions | None = None,
    batch: int = 32,
    shard_images: int | None = None,
    progress: Progress = lambda done, total: None,
) -> tuple[Path, Manifest]:
    """Prepare the latents of a prepared set of images.

    Args:
        images_dir: folder of the prepared images, RGB.
        data_dir: folder of prepared data, in which the latents get a folder of their own.
        form: what is stored. `edm2`: mean and standard deviation of images in [0, 1]; `dit`: one sample, times 0.18215,
            of images in [-1, 1]; `coco`: mean and log-variance of images in [-1, 1].
        flip: `none`; `coin`: an image is mirrored by a frozen coin; `both`: mirror images behind the others.
        captions: text features, one or more an image.
        batch: images a forward pass.

    Returns:
        the folder and its manifest.

    Raises: as `repro.data.preparing.prepare_images`.
    """
    images = load_manifest(images_dir)
    if images.dtype != "uint8" or images.channels != 3 or images.resolution % 8:
        raise UsageError(f"{images_dir}: latents need RGB images whose resolution is a multiple of 8")
    total = images.count * (2 if flip == "both" else 1)
    text = captions is not None
    source = Latents(images.name, form, images.resolution, images.num_classes, total, flip, text)
    resolution = _latent_resolution(vae, images.resolution)
    folder = data_dir / f"{source.name}-{resolution}x{CHANNELS[form]}"
    if folder.exists():
        manifest = load_manifest(folder)
        check_manifest(manifest, source, resolution, CHANNELS[form], folder)
        return folder, manifest
    pinned = {"vae_sha256": vae.sha256, "images_sha256": images.sha256, "seed": SEED}
    options = {**source.options, **pinned, **(captions.options if captions else {})}
    size = shard_images or images_a_shard(
        4 * CHANNELS[form] * resolution**2 + (captions.bytes_an_image if captions else 0)
    )
    load = functools.partial(_encode, ShardStore(images_dir, images), vae, form, flip, batch, captions)
    jobs = [
        Job(number, min(size, total - start), functools.partial(load, start, min(start + size, total)))
        for number, start in enumerate(range(0, total, size))
    ]
    plan = SetPlan(
        source.name, images.num_classes, resolution, CHANNELS[form], options, jobs, [size, total], "float32",
        captions.shape if captions else (), captions.dtype if captions else "", images.sha256,
        captions.files if captions else (),
    )  # fmt: skip
    return folder, write_set(plan, folder, 1, progress)


def encode_images(vae: VAE, images: Tensor, form: str, noise: Tensor | None = None) -> Tensor:
    """Latents of images as a form stores them.

    Args:
        images: (N, 3, H, W) uint8.
        form: `edm2`, `dit` or `coco`.
        noise: (N, 4, h, w) standard normal, for `dit`.

    Returns:
        (N, 8 or 4, h, w) float32.
    """
    pixels = images.to(torch.float32)
    mean, std, log_variance = vae.moments(pixels / 255 if form == "edm2" else pixels / 127.5 - 1)
    if form == "edm2":
        return torch.cat([mean, std], dim=1)
    if form == "coco":
        return torch.cat([mean, log_variance], dim=1)
    if noise is None:
        raise ValueError("a sample of the posterior needs noise")
    return (mean + std * noise) * DIT_FACTOR


def _encode(
    store: ShardStore, vae: VAE, form: str, flip: str, batch: int, captions: Captions | None, start: int, stop: int
) -> Part:
    """Latents start .. stop - 1; those from the number of images on are of mirror images."""
    values, labels = [], []
    for first in range(start, stop, batch):
        numbers = np.arange(first, min(first + batch, stop))
        images, classes = store.take(numbers % store.count)
        mirrored = numbers >= store.count
        if flip == "coin":
            mirrored = flip_coins(SEED, first, len(numbers))
        where = torch.from_numpy(mirrored)
        images[where] = images[where].flip(-1)
        side = _latent_resolution(vae, images.shape[-1])
        noise = posterior_noise(SEED, first, (len(numbers), 4, side, side)) if form == "dit" else None
        values.append(encode_images(vae, images, form, noise).numpy())
        labels.append(classes.numpy())
    numbers = np.arange(start, stop) % store.count
    contexts = captions.features(numbers) if captions else None
    return Part(np.concatenate(values), np.concatenate(labels), contexts=contexts)


def _latent_resolution(vae: VAE, resolution: int) -> int:
    return resolution // 2 ** (len(vae.model.config.block_out_channels) - 1)
