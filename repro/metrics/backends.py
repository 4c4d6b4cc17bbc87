"""Feature extractors behind one interface: uint8 images in, named float32 features out.

A backend is named by who computes and by which preprocessing, "own/tf1" or "clean-fid/legacy_pytorch"; only backends
of equal preprocessing give numbers that may be compared. Of torch-fidelity and clean-fid nothing but networks and
resizes is used: distances are computed here, whatever scipy is installed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from repro.errors import CorruptData, UsageError
from repro.metrics import dinov2
from repro.metrics.resize import INCEPTION_INPUTS, dino_input, scale_tf
from repro.metrics.weights import DINOV2, INCEPTION, StrPath, WeightsFile, load_state, obtain
from repro.suggest import suggest

if TYPE_CHECKING:
    from repro.metrics.inception import FIDInception

Features = dict[str, npt.NDArray[np.float32]]
Run = Callable[[Tensor], dict[str, Tensor]]
BATCH = 50
INCEPTION_LAYERS = {"features": "2048", "spatial": "spatial", "logits": "logits_unbiased"}
"""Our names of layers -> the network's."""


@dataclasses.dataclass(frozen=True)
class Backend:
    """A way to compute features.

    name: "who/preprocessing"; dims: layers that it has and their sizes; weights: its published file, None if shipped;
    open: (path of the checked weights or None, device, layers) -> function of uint8 (N, 3, H, W) on the device.
    """

    name: str
    dims: dict[str, int]
    weights: WeightsFile | None
    open: Callable[..., Run]

    @property
    def preprocessing(self) -> str:
        return self.name.split("/")[1]


class Extractor:
    """An opened backend.

    Args:
        name: a key of `BACKENDS`.
        weights_dir: folder of weights, see `repro.metrics.weights.search_folders`.
        device: where the network runs.
        layers: which features.
        sha256: pinned digest of the weights file; None is the published one.

    Raises:
        UsageError: an unknown backend or layer.
        MissingPrerequisite: the weights are not there.
        CorruptData: they are not what they should be.
    """

    def __init__(
        self,
        name: str,
        weights_dir: StrPath | None = None,
        device: str = "cpu",
        layers: tuple[str, ...] = ("features",),
        sha256: str | None = None,
    ) -> None:
        self.backend = find_backend(name)
        for layer in layers:
            if layer not in self.backend.dims:
                raise UsageError(f"{name} has no layer {layer!r}; it has {', '.join(self.backend.dims)}")
        self.name = name
        self.layers = layers
        self.device = device
        file = self.backend.weights
        path = None if file is None else obtain(file, file.sha256 if sha256 is None else sha256, weights_dir)
        self._run = self.backend.open(path, device, layers)

    @torch.no_grad()
    def __call__(self, images: Tensor, batch: int = BATCH) -> Features:
        """Features of uint8 images (N, 1 or 3, H, W), in fixed batches counted from the first image.

        Raises:
            UsageError: images of another kind.
            CorruptData: features that are not finite.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
            raise UsageError(f"extractors take uint8 (N, 1 or 3, H, W), not {images.dtype} {tuple(images.shape)}")
        rgb = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        parts = []
        with exact_arithmetic():
            for part in torch.split(rgb, batch):
                parts.append(
                    {key: value.float().cpu().numpy() for key, value in self._run(part.to(self.device)).items()}
                )
        found = {layer: np.concatenate([part[layer] for part in parts]) for layer in self.layers}
        for layer, values in found.items():
            if not np.isfinite(values).all():
                raise CorruptData(f"{self.name}: {layer} of these images are not finite")
        return found


@contextlib.contextmanager
def exact_arithmetic() -> Iterator[None]:
    """TF32 off and cuDNN's choice of algorithm fixed: batch size and hardware move features as little as they can."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def find_backend(name: str) -> Backend:
    """The backend of a name. UsageError with the nearest valid one."""
    if name not in BACKENDS:
        raise UsageError(f"no backend {name!r}{suggest(name, BACKENDS)}; there are {', '.join(BACKENDS)}")
    return BACKENDS[name]


def load_inception(path: Path) -> FIDInception:
    """Our Inception network with the weights of a state dict file. CorruptData for another file."""
    from repro.metrics import inception  # torchvision takes seconds that the digits need not wait for

    try:
        return inception.from_state(load_state(path, "FID Inception"))
    except ValueError as error:
        raise CorruptData(f"{path}: not the weights of FID Inception ({error})") from error


def _own_inception(preprocessing: str) -> Callable[..., Run]:
    resize, scale = INCEPTION_INPUTS[preprocessing]

    def open_(path: Path, device: str, layers: tuple[str, ...]) -> Run:
        network = load_inception(path).to(device)
        names = {layer: INCEPTION_LAYERS[layer] for layer in layers}

        def run(images: Tensor) -> dict[str, Tensor]:
            found = network(scale(resize(images)), tuple(names.values()))
            return {layer: found[name] for layer, name in names.items()}

        return run

    return open_


def _torch_fidelity(path: Path, device: str, layers: tuple[str, ...]) -> Run:
    from torch_fidelity.utils import create_feature_extractor  # heavy

    load_inception(path)  # torch-fidelity unpickles without restrictions: let it have only what loads with them
    names = [INCEPTION_LAYERS[layer] for layer in layers]
    network = create_feature_extractor(
        "inception-v3-compat",
        names,
        cuda=device.startswith("cuda"),
        verbose=False,
        feature_extractor_weights_path=str(path),
    )
    return lambda images: dict(zip(layers, network(images), strict=True))


def _clean_fid(mode: str) -> Callable[..., Run]:
    def open_(path: Path, device: str, layers: tuple[str, ...]) -> Run:
        from cleanfid.resize import build_resizer  # heavy

        resizer = build_resizer(mode)
        if mode == "legacy_pytorch":
            network = clean_fid_network(path, device)
        else:
            # clean-fid's own file for this mode is a TorchScript archive of the same weights
            ours = load_inception(path).to(device)
            network = lambda x: ours(scale_tf(x))["2048"]  # noqa: E731

        def run(images: Tensor) -> dict[str, Tensor]:
            resized = [torch.from_numpy(resizer(image.permute(1, 2, 0).cpu().numpy())) for image in images]
            return {"features": network(torch.stack(resized).permute(0, 3, 1, 2).to(device))}

        return run

    return open_


def clean_fid_network(path: Path, device: str) -> Callable[[Tensor], Tensor]:
    """clean-fid's own network of its mode legacy_pytorch: float (N, 3, 299, 299) in 0..255 -> (N, 2048).

    It looks for its weights in torch.hub's cache under one name only, and downloads what is not there: for the time of
    its making the cache is a folder in which the checked file has that name.
    """
    from cleanfid.features import build_feature_extractor  # heavy

    load_inception(path)  # clean-fid unpickles without restrictions
    before = torch.hub._hub_dir  # None unless somebody chose one; `get_dir` would make the cache's path of today final
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Path(folder) / "checkpoints"
        checkpoints.mkdir()
        (checkpoints / INCEPTION.names[1]).symlink_to(path.resolve())
        torch.hub.set_dir(folder)
        try:
            network: Callable[[Tensor], Tensor] = build_feature_extractor(
                "legacy_pytorch", torch.device(device), use_dataparallel=False
            )
        finally:
            torch.hub._hub_dir = before
    return network


def clean_fid_torchscript(folder: Path, device: str, resize_inside: bool) -> nn.Module:
    """clean-fid's TorchScript network (modes clean and legacy_tensorflow) from `inception-2015-12-05.pt` in a folder.

    Only for files whose digest was checked.
    """
    from cleanfid.inception_torchscript import InceptionV3W  # heavy

    network: nn.Module = InceptionV3W(str(folder), download=False, resize_inside=resize_inside).to(device)
    return network.eval()


def _own_dinov2(path: Path, device: str, layers: tuple[str, ...]) -> Run:
    try:
        network = dinov2.from_state(load_state(path, "DINOv2")).to(device)
    except ValueError as error:
        raise CorruptData(f"{path}: not the weights of DINOv2 ({error})") from error
    return lambda images: {"features": network(dino_input(images))}


def _own_digits(path: Path | None, device: str, layers: tuple[str, ...]) -> Run:
    from repro.metrics.digits import load_network

    network = load_network().to(device)

    def run(images: Tensor) -> dict[str, Tensor]:
        features, logits = network(images)
        found = {"features": features, "logits": logits}
        if "spatial" in layers:
            found["spatial"] = network.spatial(images)
        return {layer: found[layer] for layer in layers}

    return run


_INCEPTION_DIMS = {"features": 2048, "spatial": 17 * 17 * 7, "logits": 1008}
"""What `repro.metrics.inception` has, which is not imported for it."""

BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        *(Backend(f"own/{name}", _INCEPTION_DIMS, INCEPTION, _own_inception(name)) for name in INCEPTION_INPUTS),
        Backend("torch-fidelity/tf1", {"features": 2048, "logits": 1008}, INCEPTION, _torch_fidelity),
        *(
            Backend(f"clean-fid/{name}", {"features": 2048}, INCEPTION, _clean_fid(name))
            for name in ("clean", "legacy_pytorch")
        ),
        Backend("own/dinov2", {"features": dinov2.DIM}, DINOV2, _own_dinov2),
        Backend("own/digits", {"features": 64, "spatial": 112, "logits": 10}, None, _own_digits),
    )
}
