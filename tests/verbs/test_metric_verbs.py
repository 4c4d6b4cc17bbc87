"""`repro fid`, `repro ref`, `repro doctor` on digits: no weights, no network."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from repro.cli import main
from repro.data.shards import prepare
from repro.data.sources import Digits
from repro.metrics.digits import digits_features
from repro.metrics.frechet import frechet_distance
from repro.metrics.moments import StreamedMoments

FORMATS = Path(__file__).parent.parent / "golden" / "cases" / "metrics" / "formats"


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("REPRO_WEIGHTS", str(tmp_path / "w"))


@pytest.fixture
def images() -> torch.Tensor:
    """200 noisy digits, also as the folder `imgs`."""
    digits = Digits().images(8, 1)[0][:200]
    noise = np.random.default_rng(0).normal(0, 24, digits.shape)
    noisy = (digits + noise).clip(0, 255).astype(np.uint8)
    Path("imgs").mkdir()
    for index, image in enumerate(noisy):
        Image.fromarray(image[0]).save(f"imgs/{index:04d}.png")
    return torch.from_numpy(noisy)


@pytest.fixture
def shards() -> Path:
    prepare(Digits(), 8, 1, "data/digits-8x1")
    return Path("data/digits-8x1")


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(list(words))
    out, err = capsys.readouterr()
    return code, out, err


def found(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    code, out, err = run(capsys, "fid", *words, "--json")
    assert code == 0, err
    value: dict[str, Any] = json.loads(out)
    return value


def wanted(a: torch.Tensor, b: torch.Tensor) -> float:
    sides = []
    for side in (a, b):
        sides.append(StreamedMoments())
        sides[-1].update(digits_features(side).numpy())
    return frechet_distance(sides[0].mean, sides[0].covariance, sides[1].mean, sides[1].covariance)


def test_every_kind_of_side_gives_one_distance(
    images: torch.Tensor, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with zipfile.ZipFile("imgs.zip", "w") as archive:
        for path in sorted(Path("imgs").iterdir()):
            archive.write(path)
    np.savez("imgs.npz", arr_0=images.permute(0, 2, 3, 1).numpy())
    assert run(capsys, "ref", "make", "digits-8x1", "--backend", "own/digits", "--id", "real")[0] == 0
    expected = wanted(images, torch.from_numpy(Digits().images(8, 1)[0]))
    for a in ("imgs", "imgs.zip", "imgs.npz"):
        for b in ("real", str(shards), "w/references/real.npz"):
            value = found(capsys, a, b, "--backends", "own/digits")
            line = value["backends"][0]
            assert line["distance"] == pytest.approx(expected, rel=1e-12), (a, b)
            assert line["error"] > 0 and line["n"] == [200, 3594] and line["exact"]
            assert not any("papers'" in text for text in value["warnings"])


def test_statistics_against_statistics(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "ref", "make", str(shards), "--backend", "own/digits", "--id", "real")
    line = found(capsys, "real", "real")["backends"][0]
    assert line["backend"] == "statistics" and abs(line["distance"]) < 1e-9 and line["error"] is None
    code, out, _ = run(capsys, "fid", str(FORMATS / "edm.npz"), str(FORMATS / "edm2.pkl"))
    assert code == 0 and "n unknown" in out and "n = 40" in out


def test_table_difference_and_warnings(images: torch.Tensor, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "fid", "imgs", str(shards), "--backends", "own/digits", "--n", "100", "--kid")
    assert code == 0 and "imgs (n = 100) against data/digits-8x1 (n = 3594)" in out
    assert "KID se" in out and "own/digits" in out
    assert "imgs: 100 images, under twice the feature dimension 64" in err


def test_reference_is_made_twice_as_once_and_never_replaced(
    images: torch.Tensor, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("ref", "make", str(shards), "--backend", "own/digits", "--id", "real", "--spatial", "--real", "50")
    assert run(capsys, *words)[0] == 0
    content = Path("w/references/real.npz").read_bytes()
    assert run(capsys, *words)[0] == 0 and Path("w/references/real.npz").read_bytes() == content
    code, _, err = run(capsys, "ref", "make", "imgs", "--backend", "own/digits", "--id", "real")
    assert code == 2 and "another reference has this id" in err
    assert Path("w/references/real.npz").read_bytes() == content
    code, out, _ = run(capsys, "ref", "info", "real", "--json")
    fact = json.loads(out)[0]
    assert (fact["n"], fact["resolution"], fact["preprocessing"], fact["dim"]) == (3594, [8, 8], "digits", 64)
    assert fact["statistics"] == ["features", "spatial"] and fact["real_features"] == 50 and len(fact["sha256"]) == 64


@pytest.mark.parametrize(
    ("name", "options", "n"),
    [
        ("edm.npz", ["--preprocessing", "tf1", "--n", "50000"], 50000),
        ("pytorch_fid.npz", ["--preprocessing", "legacy_pytorch"], None),
        ("edm2.pkl", ["--preprocessing", "tf1"], 40),
        ("edm2_numpy1.pkl", ["--preprocessing", "dinov2"], 40),
        ("adm_reference.npz", ["--preprocessing", "tf1"], None),
        ("toy_clean_custom_na.npz", [], None),
        ("toy_clean_custom_na_kid.npz", [], 9),
        ("toy-inception-v3-compat-stat-fid-2048.pt", [], None),
        ("toy-inception-v3-compat-features-2048.pt", [], 9),
    ],
)
def test_import_of_every_published_kind(
    name: str, options: list[str], n: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "ref", "import", str(FORMATS / name), "--id", "x", *options)
    assert code == 0, err
    fact = json.loads(run(capsys, "ref", "info", "x", "--json")[1])[0]
    assert fact["n"] == n and fact["source"] == name and len(fact["source_sha256"]) == 64
    part = "mu_dino" if "dinov2" in options else "mu"
    with np.load(FORMATS / "expected.npz") as expected, np.load("w/references/x.npz") as stored:
        if "features" not in name and "kid" not in name:
            np.testing.assert_allclose(stored["mu"], expected[part], rtol=1e-6)
        assert stored["mu"].dtype == stored["sigma"].dtype == np.float64


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


def test_bad_input_is_one_clear_line(
    images: torch.Tensor, shards: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("empty", "one", "sizes", "alpha", "broken"):
        Path(folder).mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("one/a.png")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("sizes/a.png")
    Image.fromarray(np.zeros((16, 8), np.uint8)).save("sizes/b.png")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("broken/a.png")
    Path("broken/b.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for name in "ab":
        Image.fromarray(np.zeros((8, 8, 4), np.uint8)).save(f"alpha/{name}.png")
    Path("bad.zip").write_bytes(b"PK\x03\x04")
    Path("bad.npz").write_bytes(b"")
    Path("evil.pkl").write_bytes(pickle.dumps({"num_images": Evil()}))
    np.savez("skew.npz", mu=np.zeros(64), sigma=np.triu(np.ones((64, 64))))
    np.savez("small.npz", mu=np.zeros(3), sigma=np.eye(3))
    run(capsys, "ref", "make", str(shards), "--backend", "own/digits", "--id", "real")
    cases = [
        (["empty", "real"], 2, "no image in it"),
        (["one", "real"], 2, "one: 1 image, 2 or more are needed"),
        (["sizes", "real"], 2, "all images must be of one size"),
        (["alpha", "real"], 2, "mode RGBA"),
        (["broken", "real"], 2, "not a whole image"),
        (["bad.zip", "real"], 2, "not a whole zip"),
        (["bad.npz", "real"], 2, "not a file of statistics"),
        (["evil.pkl", "real"], 2, "nothing of it was run"),
        (["skew.npz", "real"], 2, "not symmetric"),
        (["imgs", "small.npz", "--backends", "own/digits"], 2, "features of dimension 64, small.npz of 3"),
        (["imgs", "real", "--backends", "own/tf1"], 2, "own/tf1 cannot be compared with statistics of digits"),
        (["imgs", "real", "--n", "201"], 2, "201 images were asked for, but it has 200 images"),
        (["imgs", "real", "--backends", "own/tf2"], 2, "no backend 'own/tf2'"),
        (["imgs", "real", "--kid"], 2, "kernel distance needs images on both sides"),
        (["imgs", "nothing"], 3, "no such file, folder or reference"),
        (["imgs", "imgs", "--backends", "own/clean"], 3, "Inception weights not found"),
        (["real", "real", "--backends", "own/digits"], 2, "both sides are statistics"),
        (["imgs", "real", "--device", "cuda"], 3, "no CUDA device"),
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = sorted(Path("w").rglob("*"))
    for words, code, message in cases:
        status, out, err = run(capsys, "fid", *words)
        lines = [line for line in err.splitlines() if line.startswith("repro: ")]
        assert (status, out) == (code, "") and len(lines) == 1 and message in lines[0], (words, err)
    for words, message in (
        (["ref", "import", str(FORMATS / "edm.npz")], "does not say by which preprocessing"),
        (["ref", "import", str(FORMATS / "adm_samples.npz"), "--preprocessing", "tf1"], "ref make"),
        (["ref", "import", str(FORMATS / "edm.npz"), "--preprocessing", "tf9"], "no preprocessing 'tf9'"),
        (["ref", "import", str(FORMATS / "edm.npz"), "--preprocessing", "tf1", "--id", "../x"], "is no id"),
        (["ref", "make", "one", "--backend", "own/digits"], "2 or more are needed"),
        (["ref", "make", "sizes", "--backend", "own/digits"], "one size"),
    ):
        status, out, err = run(capsys, *words)
        assert (status, out) == (2, "") and message in err, words
    assert sorted(Path("w").rglob("*")) == before and not Path("ran").exists()


def test_a_damaged_reference_is_named(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "ref", "make", str(shards), "--backend", "own/digits", "--id", "real")
    with np.load("w/references/real.npz") as archive:
        arrays = dict(archive)
    meta = json.loads(str(arrays["meta"]))
    np.savez("w/references/real.npz", **{**arrays, "meta": np.array(json.dumps({**meta, "dim": 3}))})
    code, _, err = run(capsys, "ref", "info", "real")
    assert code == 2 and "does not fit its arrays" in err
    code, out, err = run(capsys, "ref", "info")
    assert code == 0 and "not used" in err and "no references" in out


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "doctor")
    assert code == 0 and "ready    mini tables" in out and "missing  EDM, CIFAR-10" in out
    assert "clean-fid works" in out and "repro doctor --download" in out
    facts = json.loads(run(capsys, "doctor", "--json")[1])
    assert [fact["ready"] for fact in facts["protocols"]].count(True) == 1
    assert len(facts["protocols"]) == 10 and facts["folders"][0].endswith("/w")
