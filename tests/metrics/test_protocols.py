"""Scoring protocols, from images to named numbers."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import itertools
import os
import pickle
from pathlib import Path
from typing import Any

import inception_files
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from repro.data.sources import Digits
from repro.errors import CorruptData, MissingPrerequisite, UsageError
from repro.metrics.backends import Extractor
from repro.metrics.digits import digits_features, digits_spatial
from repro.metrics.fid_protocols import SplitScore
from repro.metrics.frechet import Moments, frechet_distance
from repro.metrics.inception_score import inception_score_adm
from repro.metrics.protocols import (
    ADMProtocol,
    DigitsProtocol,
    DINOv2Protocol,
    InceptionProtocol,
    PytorchFIDProtocol,
    floor,
    load_reference,
    preview_scores,
)
from repro.metrics.references import Reference, save

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"


@pytest.fixture(scope="module")
def reference() -> Tensor:
    return torch.from_numpy(Digits().images(8, 1)[0])


@pytest.fixture(scope="module")
def labels() -> Tensor:
    return torch.from_numpy(Digits().images(8, 1)[1])


def noisy(images: Tensor, level: float) -> Tensor:
    """Gaussian noise of `level` grey levels."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images.float() + level * noise).round().clamp(0, 255).to(torch.uint8)


def blurred(images: Tensor, width: float) -> Tensor:
    """Gaussian blur of `width` pixels."""
    line = torch.exp(-(torch.arange(-4.0, 5) ** 2) / (2 * width**2))
    kernel = torch.outer(line, line)[None, None] / line.sum() ** 2
    return F.conv2d(F.pad(images.float(), (4,) * 4, mode="replicate"), kernel).round().to(torch.uint8)


def digits_fd(generated: Tensor, reference: Tensor) -> float:
    """The same distance without torch-fidelity."""
    moments = []
    for images in (generated, reference):
        moments.append(Moments())
        moments[-1].update(digits_features(images).numpy())
    return frechet_distance(moments[0].mean, moments[0].covariance, moments[1].mean, moments[1].covariance)


def test_scores_have_their_names_and_are_called_digits(reference: Tensor) -> None:
    protocol = DigitsProtocol()
    scores = protocol.score(noisy(reference[:600], 32), reference)
    assert tuple(scores) == protocol.metrics == ("digits FD", "digits IS", "digits precision", "digits recall")
    assert protocol.primary == "digits FD" and all(name.startswith(protocol.metric_prefix) for name in scores)
    assert all(isinstance(value, float) for value in scores.values())
    assert 1 < scores["digits IS"] <= 10 and 0 < scores["digits precision"] < 1 and 0 < scores["digits recall"] <= 1


def test_torch_fidelity_agrees_with_the_own_distance(reference: Tensor) -> None:
    for generated in (noisy(reference[:1000], 32), reference[:898], 255 - reference):
        found = DigitsProtocol().score(generated, reference)["digits FD"]
        assert found == pytest.approx(digits_fd(generated, reference), rel=1e-6)


def test_the_only_difference_from_torch_fidelity_is_its_float32_mean(reference: Tensor) -> None:
    """Hence agreement to float32's own 1e-7, also for a distance of 0.09, where that mean alone costs 1.4e-6."""
    for generated in (noisy(reference[:1000], 32), reference[::2], 255 - reference):
        f, g = (digits_features(images).numpy() for images in (generated, reference))
        wanted = frechet_distance(f.mean(axis=0), np.cov(f, rowvar=False), g.mean(axis=0), np.cov(g, rowvar=False))
        assert DigitsProtocol().score(generated, reference)["digits FD"] == pytest.approx(wanted, rel=1e-7)


def test_inception_score_and_precision_by_their_definitions(reference: Tensor) -> None:
    """IS of Salimans et al. 2016, precision and recall of Kynkaanniemi et al. 2019."""
    from repro.metrics.digits import load_network

    generated, real = noisy(reference[:300], 64), reference[1000:1400]
    scores = DigitsProtocol().score(generated, real)
    f, g = (digits_features(images).double() for images in (generated, real))
    near_real = (torch.cdist(f, g) <= torch.cdist(g, g).kthvalue(4).values).any(dim=1).double().mean()
    near_fake = (torch.cdist(g, f) <= torch.cdist(f, f).kthvalue(4).values).any(dim=1).double().mean()
    assert scores["digits precision"] == pytest.approx(float(near_real), abs=1 / 300)
    assert scores["digits recall"] == pytest.approx(float(near_fake), abs=1 / 400)
    p = torch.softmax(load_network()(generated)[1].double(), dim=1)
    p = p[np.random.RandomState(2020).permutation(300)]
    splits = [(part * (part / part.mean(dim=0)).log()).sum(dim=1).mean().exp() for part in torch.split(p, 30)]
    assert scores["digits IS"] == pytest.approx(float(torch.stack(splits).mean()), rel=1e-5)


def test_precision_is_of_the_generated_and_recall_of_the_reference(reference: Tensor, labels: Tensor) -> None:
    """Half of the classes, perfectly drawn: all is precise, much is not recalled."""
    scores = DigitsProtocol().score(reference[labels < 5], reference)
    assert scores["digits precision"] == 1 and scores["digits recall"] < 0.9
    scores = DigitsProtocol().score(reference, reference[labels < 5])
    assert scores["digits precision"] < 0.9 and scores["digits recall"] == 1


def test_order_of_the_reference_does_not_matter(reference: Tensor) -> None:
    generated, order = noisy(reference[:500], 32), torch.randperm(3594, generator=torch.Generator().manual_seed(1))
    one, two = (DigitsProtocol().score(generated, images) for images in (reference, reference[order]))
    assert one == pytest.approx(two, rel=1e-5)


def test_channels_and_resolution_do_not_matter(reference: Tensor) -> None:
    generated = noisy(reference[:500], 32)
    large, large_reference = (
        images.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3).expand(-1, 3, -1, -1)
        for images in (generated, reference)
    )
    assert DigitsProtocol().score(large, large_reference) == DigitsProtocol().score(generated, reference)


def test_distance_grows_with_every_kind_of_damage(reference: Tensor, labels: Tensor) -> None:
    ladders = {
        "noise": [noisy(reference, level) for level in (8, 16, 32, 64, 128)],
        "blur": [blurred(reference, width) for width in (0.4, 0.5, 0.75, 1.0)],
        "dropped classes": [reference[labels >= dropped] for dropped in (1, 2, 5, 9)],
    }
    assert digits_fd(reference, reference) == pytest.approx(0, abs=1e-9)
    for name, ladder in ladders.items():
        distances = [digits_fd(images, reference) for images in ladder]
        assert all(b > 1.5 * a for a, b in itertools.pairwise([0.04, *distances])), (name, distances)
    assert digits_fd(ladders["dropped classes"][0], reference) > 10 * floor(reference, labels, 2000, seed=0)
    uniform = torch.randint(0, 256, (2000, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert digits_fd(uniform, reference) > 50


def test_scoring_is_silent_repeatable_and_leaves_the_generators(
    reference: Tensor, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A training run that scores in between must not see another dropout mask for it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    generated = noisy(reference[:200], 32)
    state, numpy_state = torch.get_rng_state(), repr(np.random.get_state(legacy=False))
    first = DigitsProtocol().score(generated, reference)
    assert torch.equal(torch.get_rng_state(), state) and repr(np.random.get_state(legacy=False)) == numpy_state
    assert DigitsProtocol().score(generated, reference) == first
    assert capfd.readouterr() == ("", "")
    assert os.listdir(tmp_path) == [], "a cache would be keyed by neither data nor weights"


def test_protocols_refuse_what_they_cannot_honour(reference: Tensor) -> None:
    for arguments, message in (
        ({"labels": "none"}, "labels must be 'random' or 'balanced'"),
        ({"quantise": "ceil"}, "quantise must be 'truncate' or 'round' or 'unit_truncate'"),
        ({"extractor": "vgg16"}, "extractor"),
        ({"extractor_sha256": "12345678"}, "extractor_sha256|Inception"),
    ):
        with pytest.raises(UsageError, match=message):
            DigitsProtocol(**arguments)
    for arguments, message in (
        ({"labels": ""}, "labels"),
        ({"extractor": "digits"}, "extractor"),
        ({"extractor_sha256": "67"}, "8 hex"),
        ({"resize": "bicubic"}, "resize must be 'tf1' or"),
        ({"n": 1}, "n must be 2 or more"),
    ):
        with pytest.raises(UsageError, match=message):
            InceptionProtocol(**arguments)
    for generated in (reference[:9], reference.float(), reference[:, 0], reference.expand(-1, 2, -1, -1)):
        with pytest.raises(UsageError, match="generated"):
            DigitsProtocol().score(generated, reference)
    with pytest.raises(UsageError, match="reference: 9 images"):
        DigitsProtocol().score(reference, reference[:9])


def test_reference_digest_covers_bytes_shape_and_extractor(reference: Tensor) -> None:
    protocol = DigitsProtocol()
    digest = protocol.reference_sha256(reference)
    changed = reference.clone()
    changed[-1, 0, 7, 7] ^= 1
    others = [
        changed,
        reference[:-1],
        reference.flip(0),
        reference.reshape(3594, 1, 4, 16),
        reference.expand(-1, 3, -1, -1),
    ]
    assert len({digest, *(protocol.reference_sha256(images) for images in others)}) == 6
    assert digest == protocol.reference_sha256(reference.clone())
    protocol.extractor_sha256 = "0" * 64
    assert protocol.reference_sha256(reference) != digest


def test_floor_is_a_balanced_resample_and_falls_with_n(reference: Tensor, labels: Tensor) -> None:
    values = [[floor(reference, labels, n, seed) for seed in range(5)] for n in (500, 2000, 8000)]
    assert floor(reference, labels, 2000, 0) == values[1][0] and len(set(values[1])) == 5
    means = [float(np.mean(row)) for row in values]
    assert means[0] > 2 * means[1] > 4 * means[2] > 0
    assert means[1] == pytest.approx(0.26, abs=0.08)


def test_floor_refuses_a_missing_class_and_too_few(reference: Tensor, labels: Tensor) -> None:
    with pytest.raises(UsageError, match="no reference image of class 0"):
        floor(reference[labels > 0], labels[labels > 0], 100, seed=0)
    with pytest.raises(UsageError, match="2 images or more"):
        floor(reference, labels, 1, seed=0)


def test_nothing_is_missing_for_digits() -> None:
    assert DigitsProtocol().missing() == []


@pytest.fixture
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights of the user's own."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("REPRO_WEIGHTS", raising=False)


@pytest.mark.usefixtures("_empty_cache")
def test_missing_inception_files_are_named_with_how_to_get_them(tmp_path: Path, reference: Tensor) -> None:
    protocol = InceptionProtocol(n=len(reference))
    assert (protocol.labels, protocol.extractor_sha256, protocol.metrics) == ("random", "6726825d", ("FID",))
    lines = protocol.missing(tmp_path)
    assert len(lines) == 2 and str(tmp_path / WEIGHTS) in lines[0] and "torch-fidelity" in lines[0]
    assert str(tmp_path / "cifar10-32x32.npz") in lines[1] and "EDM" in lines[1]
    (tmp_path / "cifar10-32x32.npz").write_bytes(b"")
    assert protocol.missing(tmp_path) == lines[:1]
    (tmp_path / "pt_inception-2015-12-05-6726825d.pth").write_bytes(b"")
    assert protocol.missing(tmp_path) == []
    with pytest.raises(MissingPrerequisite, match=r"ffhq-64x64\.npz"):
        InceptionProtocol(reference="ffhq-64x64.npz", n=len(reference)).score(reference, reference, tmp_path)
    with pytest.raises(MissingPrerequisite, match=r"ffhq-64x64\.npz"):
        InceptionProtocol(reference="ffhq-64x64.npz").reference_sha256(reference, tmp_path)


def test_default_folder_is_torch_hubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert str(tmp_path / "hub" / "checkpoints" / WEIGHTS) in InceptionProtocol().missing()[0]


def save_statistics(path: Path, mu: object, sigma: object) -> None:
    np.savez(path, mu=np.asarray(mu), sigma=np.asarray(sigma))


def test_reference_statistics_are_read_as_float64(tmp_path: Path) -> None:
    save_statistics(tmp_path / "r.npz", np.arange(3, dtype=np.float32), np.eye(3))
    mu, sigma = load_reference(tmp_path / "r.npz", 3)
    assert mu.dtype == sigma.dtype == np.float64 and mu.tolist() == [0, 1, 2] and np.array_equal(sigma, np.eye(3))


@pytest.mark.parametrize(
    ("mu", "sigma", "message"),
    [
        (np.zeros(2), np.eye(2), r"mu \(2,\)"),
        (np.zeros(3), np.eye(2), r"sigma \(2, 2\)"),
        (np.array([0, 0, np.nan]), np.eye(3), "finite"),
        (np.zeros(3), np.diag([1, 1, np.inf]), "finite"),
        (np.zeros(3), np.triu(np.ones((3, 3))), "symmetric"),
        (np.zeros(3), np.diag([1.0, -1, 1]), "diagonal"),
        (np.array([None] * 3), np.eye(3), "not a file of statistics"),
        (np.array(["a", "b", "c"]), np.eye(3), "not a file of statistics"),
    ],
)
def test_damaged_statistics_are_named(mu: object, sigma: object, message: str, tmp_path: Path) -> None:
    save_statistics(tmp_path / "r.npz", mu, sigma)
    with pytest.raises(CorruptData, match=rf"r\.npz.*{message}"):
        load_reference(tmp_path / "r.npz", 3)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut"])
def test_files_that_are_no_statistics_are_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "r.npz").write_bytes(content)
    with pytest.raises(CorruptData, match=r"r\.npz"):
        load_reference(tmp_path / "r.npz", 3)
    np.savez(tmp_path / "r.npz", mu=np.zeros(3))
    with pytest.raises(CorruptData, match="sigma"):
        load_reference(tmp_path / "r.npz", 3)


@pytest.fixture(scope="module")
def inception_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the right keys and shapes, He-normal from a fixed seed, and statistics of the right shape."""
    folder = tmp_path_factory.mktemp("weights")
    inception_files.write_weights(folder)
    save_statistics(folder / "cifar10-32x32.npz", np.zeros(2048), np.eye(2048))
    return folder


def inception_protocol(folder: Path, n: int = 2, **settings: Any) -> InceptionProtocol:
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    return InceptionProtocol(extractor_sha256=digest[:8], n=n, **settings)


@pytest.mark.slow
def test_fid_through_the_real_network(
    inception_dir: Path, reference: Tensor, capfd: pytest.CaptureFixture[str]
) -> None:
    """Against unit statistics FID = |mu|^2 + tr S + 2048 - 2 tr S^(1/2), and S has few eigenvalues for few images."""
    from torch_fidelity.utils import create_feature_extractor

    images = reference[:5].repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    protocol = inception_protocol(inception_dir, 5)
    found = protocol.score(images, images, inception_dir)
    network = create_feature_extractor(
        "inception-v3-compat",
        ["2048"],
        cuda=False,
        verbose=False,
        feature_extractor_weights_path=str(inception_dir / WEIGHTS),
    )
    with torch.no_grad():
        features = network(images.expand(-1, 3, -1, -1))[0].double().numpy()
    centred = features - features.mean(axis=0)
    assert np.abs(centred).max() > 1e-3, "features that vanish would make this test empty"
    roots = np.linalg.svd(centred, compute_uv=False) / 2
    wanted = (features.mean(axis=0) ** 2).sum() + (roots**2).sum() + 2048 - 2 * roots.sum()
    assert list(found) == ["FID"] and found["FID"] == pytest.approx(wanted, rel=1e-6)
    assert capfd.readouterr() == ("", "")
    wanted_digest = hashlib.sha256((inception_dir / "cifar10-32x32.npz").read_bytes()).hexdigest()
    assert protocol.reference_sha256(images, inception_dir) == wanted_digest


def test_weights_of_another_digest_are_refused(inception_dir: Path, reference: Tensor) -> None:
    with pytest.raises(CorruptData, match="expected 6726825d"):
        InceptionProtocol(n=2).score(reference[:2], reference, inception_dir)


class Evil:
    """Would run code when unpickled without restrictions."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("kind", ["pickle", "junk", "keys"])
def test_files_that_are_not_the_weights_are_refused_unopened(
    kind: str, inception_dir: Path, tmp_path: Path, reference: Tensor
) -> None:
    os.link(inception_dir / "cifar10-32x32.npz", tmp_path / "cifar10-32x32.npz")
    if kind == "pickle":
        torch.save({"Conv2d_1a_3x3.conv.weight": Evil(tmp_path / "ran")}, tmp_path / WEIGHTS)
    elif kind == "junk":
        (tmp_path / WEIGHTS).write_bytes(b"junk" * 100)
    else:
        torch.save({"other": torch.zeros(3)}, tmp_path / WEIGHTS)
    with pytest.raises(CorruptData, match="not the weights"):
        inception_protocol(tmp_path).score(reference[:2], reference, tmp_path)
    assert not (tmp_path / "ran").exists()


def test_digits_sfid_is_a_metric_only_where_asked_for(reference: Tensor) -> None:
    generated = noisy(reference[:400], 32)
    plain, spatial = DigitsProtocol(), DigitsProtocol(spatial=True)
    scores = spatial.score(generated, reference)
    assert tuple(scores) == spatial.metrics == (*plain.metrics, "digits sFD")
    assert {name: scores[name] for name in plain.metrics} == plain.score(generated, reference)
    moments = []
    for images in (generated, reference):
        moments.append(Moments())
        moments[-1].update(digits_spatial(images).numpy())
    wanted = frechet_distance(moments[0].mean, moments[0].covariance, moments[1].mean, moments[1].covariance)
    assert scores["digits sFD"] == pytest.approx(wanted)
    assert spatial.score(reference[:, :, :, [7, *range(7)]], reference)["digits sFD"] > 3 * wanted, "shifted by a pixel"


def test_a_scaled_protocol_parameter_moves_no_hash() -> None:
    """Neutral values: the canonical form of the old settings is what it was."""
    assert set(InceptionProtocol.NEUTRAL) | {"labels", "extractor", "extractor_sha256", "reference", "quantise"} == set(
        inspect.signature(InceptionProtocol).parameters
    )
    for protocol in (InceptionProtocol, DigitsProtocol):
        defaults = {name: p.default for name, p in inspect.signature(protocol).parameters.items()}
        assert all(defaults[name] == value for name, value in protocol.NEUTRAL.items())


@pytest.mark.usefixtures("_empty_cache")
def test_scoring_refuses_what_is_not_the_protocols(inception_dir: Path, tmp_path: Path, reference: Tensor) -> None:
    folder = tmp_path / "w"
    folder.mkdir()
    os.link(inception_dir / WEIGHTS, folder / WEIGHTS)
    os.link(inception_dir / "cifar10-32x32.npz", folder / "cifar10-32x32.npz")
    images = reference[:3]
    with pytest.raises(UsageError, match="3 images, but InceptionProtocol is a protocol of n = 2.*InceptionProtocol.n"):
        inception_protocol(folder).score(images, reference, folder)
    with pytest.raises(UsageError, match="but the protocol's reference is 123456"):
        inception_protocol(folder, 3, reference_digest="123456").score(images, reference, folder)
    stored = Reference(
        "mine", "legacy_pytorch", 10, (8, 8), "x", "0" * 64, {"features": (np.zeros(2048), np.eye(2048))}
    )
    save(stored, folder)
    with pytest.raises(UsageError, match="preprocessing 'legacy_pytorch', but InceptionProtocol compares with 'tf1'"):
        inception_protocol(folder, 3, reference="mine").score(images, reference, folder)
    save(
        dataclasses.replace(stored, id="small", preprocessing="tf1", statistics={"features": (np.zeros(4), np.eye(4))}),
        folder,
    )
    with pytest.raises(CorruptData, match=r"mu \(4,\) .* expected \(2048,\)"):
        inception_protocol(folder, 3, reference="small").score(images, reference, folder)
    mixed = inception_protocol(folder, 3, reference="mine", reference_resize="legacy_pytorch")
    assert mixed.reference_sha256(reference, folder) == mixed.load(folder).sha256


@pytest.mark.slow
@pytest.mark.usefixtures("_empty_cache")
def test_the_adm_suite_through_the_real_network(inception_dir: Path, tmp_path: Path) -> None:
    """Against its own images: distances 0, all precise and recalled; IS of the plain definition."""
    folder = tmp_path / "w"
    folder.mkdir()
    os.link(inception_dir / WEIGHTS, folder / WEIGHTS)
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 3, 16, 16), dtype=np.uint8))
    extractor = Extractor("own/tf1", folder, layers=("features", "spatial", "logits"), sha256=digest)
    found = extractor(images)
    arrays = {"arr_0": images.permute(0, 2, 3, 1).numpy()}
    for layer, suffix in (("features", ""), ("spatial", "_s")):
        moments = Moments()
        moments.update(found[layer])
        arrays |= {f"mu{suffix}": moments.mean, f"sigma{suffix}": moments.covariance}
    np.savez(folder / "batch.npz", **arrays)
    protocol = ADMProtocol(extractor_sha256=digest[:8], reference="batch.npz", n=6)
    scores = protocol.score(images, images, folder)
    assert tuple(scores) == protocol.metrics == ("FID", "sFID", "IS", "precision", "recall")
    scale = float((found["features"] ** 2).sum(axis=1).mean())
    assert abs(scores["FID"]) < 1e-6 * scale and abs(scores["sFID"]) < 1e-6 * scale
    assert scores["precision"] == scores["recall"] == 1
    assert scores["IS"] == pytest.approx(inception_score_adm(found["logits"]), rel=1e-9)
    other = protocol.score(255 - images, images, folder)
    assert other["FID"] > 0 and other["sFID"] > 0


@pytest.mark.usefixtures("_empty_cache")
def test_every_protocol_names_what_it_misses(tmp_path: Path) -> None:
    for protocol, name in (
        (ADMProtocol(), "VIRTUAL_imagenet256_labeled.npz"),
        (PytorchFIDProtocol(), "fid_stats_cifar10_train_pytorch.npz"),
        (DINOv2Protocol(), "img512.pkl"),
    ):
        lines = protocol.missing(tmp_path)
        assert len(lines) == 2 and "doctor --download" in lines[0] and name in lines[1]
    assert PytorchFIDProtocol().quantise == "round" and PytorchFIDProtocol().resize == "legacy_pytorch"
    assert DINOv2Protocol().primary == "FD-DINOv2"


@pytest.mark.usefixtures("_empty_cache")
def test_dinov2_wants_a_digest_that_the_user_trusts(tmp_path: Path, reference: Tensor) -> None:
    (tmp_path / "dinov2_vitl14_pretrain.pth").write_bytes(b"weights")
    content = {"num_images": 3, "fd_dinov2": {"mu": np.zeros(1024), "sigma": np.eye(1024)}}
    (tmp_path / "img512.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(MissingPrerequisite, match="bind extractor_sha256 = "):
        DINOv2Protocol(n=2).score(reference[:2], reference, tmp_path)
    digest = hashlib.sha256(b"weights").hexdigest()
    with pytest.raises(CorruptData, match="not the weights of DINOv2"):
        DINOv2Protocol(n=2, extractor_sha256=digest).score(reference[:2], reference, tmp_path)


def test_previews_have_names_of_their_own(reference: Tensor) -> None:
    protocol = DigitsProtocol()
    found = preview_scores(protocol, reference[:100].flip(2), reference)
    assert "preview digits FD (n = 100)" in found and not set(found) & set(protocol.metrics)


def test_split_score_is_the_adm_score_of_the_whole() -> None:
    logits = np.random.default_rng(0).standard_normal((95, 4)).astype(np.float32)
    score = SplitScore(split_size=40)
    blocks = [{"logits": part} for part in np.array_split(logits, 7)]
    assert list(score.watch(blocks)) == blocks
    assert score.value() == pytest.approx(inception_score_adm(logits, 40), rel=1e-12)
