"""The digits extractor: shipped weights, input handling, and what its distance sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from repro.data.sources import Digits
from repro.errors import CorruptData, UsageError
from repro.metrics import digits, train_digits
from repro.metrics.digits import DigitsNet, digits_features, load_network, to_grey8


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    images, labels = Digits().images(8, 1)
    return torch.from_numpy(images), torch.from_numpy(labels)


def test_network_has_the_size_of_its_description() -> None:
    assert sum(parameter.numel() for parameter in DigitsNet().parameters()) == 22_954
    features, logits = DigitsNet()(torch.zeros(3, 1, 8, 8, dtype=torch.uint8))
    assert features.shape == (3, 64) and logits.shape == (3, 10)


def test_shipped_weights_know_the_digits(data: tuple[Tensor, Tensor]) -> None:
    images, labels = data
    with torch.no_grad():
        logits = load_network()(images)[1]
    assert (logits.argmax(dim=1) == labels).double().mean() > 0.99


def test_shipped_features_have_not_moved(data: tuple[Tensor, Tensor]) -> None:
    """Sum and sum of squares over all features of all images; float32 rounding may differ between CPUs."""
    features = digits_features(data[0]).double()
    assert features.shape == (3594, 64)
    assert float(features.sum()) == pytest.approx(193298.68608, rel=1e-5)
    assert float((features**2).sum()) == pytest.approx(681679.02720, rel=1e-5)


def test_another_weights_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "WEIGHTS_SHA256", "0" * 64)
    digits.weights_bytes.cache_clear()
    with pytest.raises(CorruptData, match=r"digits\.safetensors: sha256 .* pinned is 0{12}"):
        load_network()


def test_a_missing_weights_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "WEIGHTS_FILE", "absent.safetensors")
    digits.weights_bytes.cache_clear()
    with pytest.raises(CorruptData, match=r"absent\.safetensors"):
        load_network()


@pytest.mark.parametrize(("resolution", "channels"), [(8, 3), (16, 1), (24, 3), (32, 3)])
def test_enlarged_digits_have_the_same_features(resolution: int, channels: int, data: tuple[Tensor, Tensor]) -> None:
    large = torch.from_numpy(Digits().images(resolution, channels)[0][:300])
    assert torch.equal(to_grey8(large), data[0][:300].float())
    assert torch.equal(digits_features(large), digits_features(data[0][:300]))


def test_grey8_is_the_mean_of_blocks_and_channels() -> None:
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    wanted = torch.nn.functional.avg_pool2d(images.double().mean(dim=1, keepdim=True), 2)
    assert torch.allclose(to_grey8(images).double(), wanted, rtol=1e-6)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 1, 8, 8),
        torch.zeros(2, 1, 12, 12, dtype=torch.uint8),
        torch.zeros(2, 1, 8, 16, dtype=torch.uint8),
        torch.zeros(2, 8, 8, dtype=torch.uint8),
    ],
)
def test_images_of_another_kind_are_refused(images: Tensor) -> None:
    with pytest.raises(UsageError, match="digits extractor takes"):
        to_grey8(images)


def test_training_is_deterministic_and_leaves_the_global_generator(data: tuple[Tensor, Tensor]) -> None:
    images, labels = data[0][:512], data[1][:512]
    state = torch.get_rng_state()
    first, second = (train_digits.train(images, labels, epochs=2) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key])
    assert train_digits.weights_file(first, 0.5, 512) == train_digits.weights_file(second, 0.5, 512)
    assert train_digits.accuracy(train_digits.train(images, labels, epochs=25), images, labels) > 0.9


def test_the_shipped_file_is_what_the_script_describes() -> None:
    from safetensors.torch import load

    content = digits.weights_bytes()
    recipe_start = content.index(b"{", 9)
    for item in (b"3594", b"train_digits", b"label_smoothing"):
        assert item in content[recipe_start : recipe_start + 1500]
    assert all(value.dtype == torch.float32 for value in load(content).values())


@pytest.mark.slow
def test_script_writes_weights_as_good_as_the_shipped_ones(
    tmp_path: Path, data: tuple[Tensor, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    """Other CPUs differ in the last bits, so values are compared, not bytes."""
    from safetensors.torch import load_file

    threads = torch.get_num_threads()
    try:
        train_digits.main(["--out", str(tmp_path / "w.safetensors")])
    finally:
        torch.set_num_threads(threads)
    assert "accuracy 0.99" in capsys.readouterr().out
    network = DigitsNet()
    network.load_state_dict(load_file(tmp_path / "w.safetensors"))
    assert train_digits.accuracy(network, *data) == pytest.approx(
        train_digits.accuracy(load_network(), *data), abs=3e-3
    )
    assert np.isfinite(network(data[0][:10])[0].detach().numpy()).all()
