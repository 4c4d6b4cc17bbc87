"""Every file format of reference statistics and samples, whole and damaged."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from repro.errors import CorruptData, MissingPrerequisite
from repro.metrics.formats import read_file

GOLDEN = Path(__file__).parent.parent / "golden" / "cases" / "metrics" / "formats"


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    with np.load(GOLDEN / "expected.npz") as data:
        return dict(data)


@pytest.mark.parametrize(
    ("name", "kind", "n", "parts"),
    [
        ("edm.npz", "statistics", None, {"features": ""}),
        ("pytorch_fid.npz", "statistics", None, {"features": ""}),
        ("toy_clean_custom_na.npz", "statistics", None, {"features": ""}),
        ("edm2.pkl", "EDM2 statistics", 40, {"features": "", "dinov2": "_dino"}),
        ("edm2_numpy1.pkl", "EDM2 statistics", 40, {"features": "", "dinov2": "_dino"}),
        ("adm_reference.npz", "ADM reference", None, {"features": "", "spatial": "_s"}),
        ("toy-inception-v3-compat-stat-fid-2048.pt", "torch-fidelity statistics", None, {"features": ""}),
    ],
)
def test_statistics(name: str, kind: str, n: int | None, parts: dict[str, str], expected: dict[str, Any]) -> None:
    found = read_file(GOLDEN / name)
    assert (found.kind, found.n, set(found.statistics)) == (kind, n, set(parts))
    for part, suffix in parts.items():
        mu, sigma = found.statistics[part]
        assert mu.dtype == sigma.dtype == np.float64
        tolerance = 1e-7 if ("clean" in name or name.endswith(".pt")) else 0  # float32 means
        np.testing.assert_allclose(mu, expected[f"mu{suffix}"], rtol=tolerance, atol=tolerance)
        np.testing.assert_array_equal(sigma, expected[f"sigma{suffix}"])


@pytest.mark.parametrize("name", ["toy_clean_custom_na_kid.npz", "toy-inception-v3-compat-features-2048.pt"])
def test_features(name: str) -> None:
    found = read_file(GOLDEN / name)
    assert found.features is not None and found.features.shape == (9, 6) and found.n == 9


@pytest.mark.parametrize("name", ["adm_reference.npz", "adm_samples.npz", "adm_samples_labeled.npz"])
def test_images(name: str) -> None:
    found = read_file(GOLDEN / name).images
    with np.load(GOLDEN / name) as data:
        wanted = torch.from_numpy(data["arr_0"].transpose(0, 3, 1, 2).copy())
    assert found is not None and len(found) == 12
    assert torch.equal(torch.cat(list(found.batches(5))), wanted)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
def test_images_of_either_order(compressed: bool, order: Any, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 4, 6, 3), dtype=np.uint8)
    (np.savez_compressed if compressed else np.savez)(tmp_path / "x.npz", np.asarray(images, order=order))
    found = read_file(tmp_path / "x.npz").images
    assert found is not None and found.fortran == (order == "F")
    assert np.array_equal(torch.cat(list(found.batches(3))).numpy(), images.transpose(0, 3, 1, 2))


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def lying_npz() -> bytes:
    """A header that promises 10^15 numbers."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**8, 10**7)})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("mu.npy", header.getvalue())
    return buffer.getvalue()


class Evil:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("ran",))


BAD = {
    "empty.npz": (b"", "not a file of statistics"),
    "html.npz": (b"<html>", "not a file of statistics"),
    "cut.npz": ((GOLDEN / "edm.npz").read_bytes()[:400], "not a file of statistics"),
    "objects.npz": (npz(mu=np.array([Evil()])), "pickled objects"),
    "text.npz": (npz(mu=np.array(["a"]), sigma=np.eye(1)), "not numbers"),
    "half.npz": (npz(mu=np.zeros(3)), "sigma is missing"),
    "dims.npz": (npz(mu=np.zeros(3), sigma=np.eye(2)), "belong together"),
    "nan.npz": (npz(mu=np.full(2, np.nan), sigma=np.eye(2)), "finite"),
    "skew.npz": (npz(mu=np.zeros(2), sigma=np.triu(np.ones((2, 2)))), "not symmetric"),
    "float.npz": (npz(arr_0=np.zeros((2, 4, 4, 3))), "arr_0 must be uint8"),
    "other.npz": (npz(a=np.zeros(3)), "no mu, sigma, arr_0 or feats"),
    "features.npz": (npz(feats=np.full((2, 2), np.nan)), "finite"),
    "liar.npz": (lying_npz(), "does not hold an array"),
    "code.pkl": (pickle.dumps({"num_images": Evil()}), "nothing of it was run"),
    "list.pkl": (pickle.dumps([1, 2]), "not EDM2's"),
    "nothing.pkl": (pickle.dumps({"num_images": 3}), "neither fid"),
    "inner.pkl": (pickle.dumps({"num_images": 3, "fid": [1]}), "mu and sigma"),
    "numbers.pkl": (pickle.dumps({"num_images": 3, "fid": {"mu": 1, "sigma": 2}}), "not an array"),
    "junk.pt": (b"PK\x03\x04junk", "damaged"),
    "plain.pt": (pickle.dumps(1), "not a file of statistics or samples"),
    "x.txt": (b"mu", "not a file of statistics or samples"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorruptData, match=message) as found:
        read_file(tmp_path / name)
    assert name in str(found.value) and "\n" not in str(found.value)
    assert not (tmp_path / "ran").exists()


def test_code_in_a_torch_file_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"mu": Evil()}, tmp_path / "x.pt")
    with pytest.raises(CorruptData, match="nothing of it was run"):
        read_file(tmp_path / "x.pt")
    assert not (tmp_path / "ran").exists()


def test_missing_and_special_files(tmp_path: Path) -> None:
    with pytest.raises(MissingPrerequisite, match="no such file"):
        read_file(tmp_path / "x.npz")
    os.mkfifo(tmp_path / "pipe.pkl")
    with pytest.raises(CorruptData, match="regular"):
        read_file(tmp_path / "pipe.pkl")


def test_images_cut_after_the_header_was_read(tmp_path: Path) -> None:
    content = bytearray(npz(arr_0=np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), dtype=np.uint8)))
    content[3000] ^= 255
    (tmp_path / "x.npz").write_bytes(bytes(content))
    found = read_file(tmp_path / "x.npz").images
    assert found is not None
    with pytest.raises(CorruptData, match="damaged"):
        list(found.batches(10))
