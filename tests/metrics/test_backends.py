"""Backends against each other on fixed images with the same weights, for batches of 1 and 64."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import inception_files
import numpy as np
import pytest
import torch
from torch import Tensor

from repro.errors import CorruptData, MissingPrerequisite, UsageError
from repro.metrics import dinov2
from repro.metrics.backends import BACKENDS, Extractor, clean_fid_torchscript
from repro.metrics.digits import digits_features, digits_spatial
from repro.metrics.resize import dino_input, resize_clean, resize_tf1, scale_tf

TOLERANCE = 1e-4
"""Relative to the largest feature: what torch-fidelity states against TensorFlow."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("weights")
    return folder, inception_files.write_weights(folder)


def fixed_images(n: int, height: int = 32, width: int = 32) -> Tensor:
    """Half noise, half smooth."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (n, 3, height, width))
    ramp = np.linspace(0, 255, width)[None, None, None] * np.ones((n, 3, height, 1))
    keep = np.arange(n)[:, None, None, None] % 2 == 0
    return torch.from_numpy(np.where(keep, noise, ramp).astype(np.uint8))


def features(name: str, weights: tuple[Path, str], images: Tensor, batch: int, layer: str = "features") -> Tensor:
    extractor = Extractor(name, weights[0], layers=(layer,), sha256=weights[1])
    return torch.from_numpy(extractor(images, batch)[layer])


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 64])
def test_libraries_agree_with_ours(batch: int, weights: tuple[Path, str]) -> None:
    images = fixed_images(6)
    ours = {name: features(f"own/{name}", weights, images, 64) for name in ("tf1", "legacy_pytorch", "clean")}
    for name in ours:
        assert distance(features(f"own/{name}", weights, images, batch), ours[name]) < TOLERANCE
    for name in ("torch-fidelity/tf1", "clean-fid/legacy_pytorch", "clean-fid/clean"):
        found = features(name, weights, images, batch)
        assert found.shape == (6, 2048)
        assert distance(found, ours[name.split("/")[1]]) < TOLERANCE, name
    found = features("torch-fidelity/tf1", weights, images, batch, "logits")
    assert distance(found, features("own/tf1", weights, images, 64, "logits")) < TOLERANCE
    spread = [distance(ours[a], ours[b]) for a, b in (("tf1", "legacy_pytorch"), ("tf1", "clean"))]
    assert torch.hub._hub_dir is None, "the cache's place is the user's to choose"
    assert min(spread) > 10 * TOLERANCE, "protocols that agreed would make this test empty"


@pytest.mark.slow
def test_clean_fids_torchscript_path(weights: tuple[Path, str], tmp_path: Path) -> None:
    """The real code path of clean-fid's other two modes, with an archive of the right form."""
    inception_files.write_torchscript(tmp_path)
    images = fixed_images(2, 40, 24)
    with torch.no_grad():
        clean = clean_fid_torchscript(tmp_path, "cpu", resize_inside=False)(resize_clean(images))
        legacy = clean_fid_torchscript(tmp_path, "cpu", resize_inside=True)(images.float())
    assert distance(clean, features("own/clean", weights, images, 64)) < TOLERANCE
    assert distance(legacy, features("own/tf1", weights, images, 64)) < TOLERANCE


@pytest.mark.slow
def test_grey_images_are_repeated_and_layers_have_their_sizes(weights: tuple[Path, str]) -> None:
    grey = fixed_images(2)[:, :1]
    extractor = Extractor("own/tf1", weights[0], layers=("spatial", "features", "logits"), sha256=weights[1])
    found = extractor(grey)
    assert {name: value.shape for name, value in found.items()} == {
        "spatial": (2, 2023), "features": (2, 2048), "logits": (2, 1008),
    }  # fmt: skip
    again = extractor(grey.repeat(1, 3, 1, 1))
    assert all(np.array_equal(found[name], again[name]) for name in found)


def test_resizes_of_images_that_are_not_square_by_hand() -> None:
    """One row of two pixels 0 and 255: TensorFlow's output j reads j * 2 / 299, clamped at the last pixel."""
    image = torch.tensor([[[[0, 255]]]], dtype=torch.uint8)
    row = resize_tf1(image)[0, 0]
    assert row.shape == (299, 299) and torch.equal(row, row[:1].expand(299, -1))
    j = torch.arange(299)
    torch.testing.assert_close(row[0], (255 * 2 * j / 299).clamp(max=255).float(), rtol=0, atol=1e-3)
    assert scale_tf(row).max() == (255 - 128) / 128
    assert resize_clean(image).shape == (1, 1, 299, 299)


def test_clean_is_not_rounded_and_clipped() -> None:
    found = resize_clean(fixed_images(1, 20, 30))
    assert found.min() == 0 and found.max() == 255
    assert (found != found.round()).float().mean() > 0.5


def test_digits_backend_is_the_digits_extractor() -> None:
    images = fixed_images(4, 8, 8)[:, :1]
    found = Extractor("own/digits", layers=("features", "spatial", "logits"))(images)
    # the extractor sees three equal channels
    assert np.array_equal(found["features"], digits_features(images).numpy())
    assert np.array_equal(found["spatial"], digits_spatial(images).numpy())
    assert found["spatial"].shape == (4, 112) == (4, BACKENDS["own/digits"].dims["spatial"])


def test_digits_spatial_feature_sees_where() -> None:
    """An image and its mirror image differ in it, in the columns alone."""
    image = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    image[..., :3] = 255
    found = digits_spatial(torch.cat([image, image.flip(3)])).reshape(2, 4, 4, 7)
    assert (found[0] - found[1]).abs().max() > 0.1


def test_wrong_requests(weights: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    with pytest.raises(UsageError, match="no backend 'own/tf2'.*own/tf1"):
        Extractor("own/tf2")
    with pytest.raises(UsageError, match="has no layer 'spatial'"):
        Extractor("clean-fid/clean", layers=("spatial",))
    with pytest.raises(MissingPrerequisite, match="repro doctor --download"):
        Extractor("own/tf1", tmp_path)
    with pytest.raises(CorruptData, match="expected 6726825d"):
        Extractor("own/tf1", weights[0])
    for images in (torch.zeros(2, 3, 8, 8), torch.zeros(2, 2, 8, 8, dtype=torch.uint8), torch.zeros(0, 1, 8, 8).byte()):
        with pytest.raises(UsageError, match="extractors take uint8"):
            Extractor("own/digits")(images)


def test_features_that_are_not_finite_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = Extractor("own/digits")
    monkeypatch.setattr(extractor, "_run", lambda x: {"features": torch.full((len(x), 64), float("nan"))})
    with pytest.raises(CorruptData, match="own/digits: features of these images are not finite"):
        extractor(fixed_images(2, 8, 8))


def small_dinov2() -> dinov2.DINOv2:
    torch.manual_seed(0)
    network = dinov2.DINOv2(dim=128, depth=2, heads=2, side=5)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


def test_dinov2_has_the_published_keys() -> None:
    with torch.device("meta"):
        keys = list(dinov2.DINOv2().state_dict())
    assert keys[:5] == ["cls_token", "pos_embed", "mask_token", "patch_embed.proj.weight", "patch_embed.proj.bias"]
    assert len(keys) == 5 + 24 * 14 + 2 and keys[-2:] == ["norm.weight", "norm.bias"]
    assert "blocks.23.attn.qkv.weight" in keys and "blocks.0.ls1.gamma" in keys and not dinov2.VERIFIED


def test_dinov2_from_its_state_and_at_another_grid() -> None:
    network = small_dinov2()
    again = dinov2.from_state(network.state_dict())
    x = dino_input(fixed_images(2))
    assert x.shape == (2, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(again(x), network(x)) and network(x).shape == (2, 128)
        assert torch.equal(network.positions(5, 5), network.pos_embed)
        assert network.positions(16, 16).shape == (1, 257, 128)
    # a table that is the same everywhere stays so
    with torch.no_grad():
        network.pos_embed[:, 1:] = 3.0
        torch.testing.assert_close(network.positions(16, 16)[:, 1:], torch.full((1, 256, 128), 3.0))
    state = dict(network.state_dict())
    del state["norm.bias"]
    with pytest.raises(ValueError, match=r"'norm\.bias' is missing"):
        dinov2.from_state(state)


def test_dino_input_by_hand() -> None:
    grey = torch.full((1, 3, 224, 224), 51, dtype=torch.uint8)
    wanted = (0.2 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(dino_input(grey)[0, :, 0, 0], wanted)


def test_the_sizes_of_inception_s_layers_are_the_network_s() -> None:
    from repro.metrics import inception

    sizes = {"features": inception.DIM, "spatial": inception.SPATIAL_DIM, "logits": inception.NUM_CLASSES}
    assert BACKENDS["own/tf1"].dims == sizes


def test_neither_planning_nor_the_digits_import_torchvision() -> None:
    """It takes seconds, and its compiler prints at the end of a process."""
    asked = "print(*(name in sys.modules for name in ('torchvision', 'triton')))"
    code = f"import sys, repro.launch.work, repro.results.collect; {asked}"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]
