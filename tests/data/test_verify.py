"""`verify` names shard and member; the command line says it in one line and exits with the right code."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from pictures import fill, picture, prepared

from repro.cli import main
from repro.data.catalogue import CATALOGUE
from repro.data.manifest import load_manifest
from repro.data.verify import verify_folder


def rewrite(path: Path, keep: Callable[[str], bool]) -> None:
    """The same tar without some of its members."""
    content = path.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(content)) as old, tarfile.open(path, "w") as new:
        for member in old:
            if keep(member.name):
                new.addfile(member, old.extractfile(member))


def test_a_good_folder_has_no_problem(tmp_path: Path) -> None:
    folder, manifest = prepared(tmp_path, 21, shard_images=6)
    seen: list[tuple[int, int]] = []
    assert verify_folder(folder, lambda done, total: seen.append((done, total))) == []
    assert seen == [(6, 21), (12, 21), (18, 21), (21, 21)]


@pytest.mark.parametrize("image", [0, 3, 5])
def test_a_flipped_byte_names_shard_member_and_image(image: int, tmp_path: Path) -> None:
    folder, _ = prepared(tmp_path, 21, shard_images=6)
    path = folder / "toy-00002.tar"
    content = bytearray(path.read_bytes())
    content[512 + 128 + image * 192 + 77] ^= 1
    path.write_bytes(content)
    (problem,) = verify_folder(folder)
    assert "toy-00002.tar: corrupt shard" in problem
    assert problem.endswith(f"member toy-00002-000.x.npy is damaged (image {image})")


def test_a_flipped_label_names_its_member(tmp_path: Path) -> None:
    folder, _ = prepared(tmp_path, 21, shard_images=6)
    path = folder / "toy-00001.tar"
    with tarfile.open(path) as archive:
        offset = archive.getmember("toy-00001-000.y.npy").offset_data
    content = bytearray(path.read_bytes())
    content[offset + 128 + 2 * 8] ^= 1
    path.write_bytes(content)
    (problem,) = verify_folder(folder)
    assert problem.endswith("member toy-00001-000.y.npy is damaged (image 2)")


@pytest.mark.parametrize("field", ["x.npy", "y.npy"])
def test_a_missing_member_is_named(field: str, tmp_path: Path) -> None:
    folder, _ = prepared(tmp_path, 21, shard_images=6)
    rewrite(folder / "toy-00003.tar", lambda name: not name.endswith(field))
    (problem,) = verify_folder(folder)
    assert f"member toy-00003-000.{field} is missing" in problem


def test_missing_and_stray_files_are_named(tmp_path: Path) -> None:
    folder, _ = prepared(tmp_path, 21, shard_images=6)
    (folder / "toy-00000.tar").unlink()
    (folder / "toy-00001.index.npy").write_bytes(b"")
    (folder / "toy-00002.tar").write_bytes((folder / "toy-00002.tar").read_bytes()[:700])
    (folder / "stray.txt").write_text("x")
    problems = verify_folder(folder)
    assert len(problems) == 4
    for problem, name in zip(problems, ("00000.tar", "00001.index.npy", "00002.tar", "stray.txt"), strict=True):
        assert name in problem


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(list(words))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_prepare_info_and_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = fill(tmp_path / "pictures", 12)
    words = ["data", "prepare", "folder", "--source", str(source), "--resolution", "8", "--classes", "3"]
    words += ["--out", str(tmp_path / "data"), "--jobs", "1"]
    code, out, err = run(capsys, *words)
    folder = tmp_path / "data" / "folder-8x3"
    assert code == 0 and not err
    assert out.startswith(f"{folder}: prepared: 12 images in 3 classes, 3x8x8, 1 shards, sha256 ")
    assert "was prepared before" in run(capsys, *words)[1]
    code, out, _ = run(capsys, "data", "info", str(folder), "--json", "--picture", str(tmp_path / "grid.png"))
    facts = json.loads(out)
    assert code == 0 and facts["class_counts"] == [4, 4, 4] and facts["manifest_sha256"] == load_manifest(folder).sha256
    assert (tmp_path / "grid.png").read_bytes()[:4] == b"\x89PNG"
    code, out, _ = run(capsys, "data", "verify", str(tmp_path / "data"))
    assert code == 0 and "all 1 shards" in out
    path = folder / "folder-00000.tar"
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    code, out, err = run(capsys, "data", "verify", str(folder))
    assert code == 2 and "member folder-00000-000.x.npy is damaged (image 0)" in out
    assert err == f"repro: {folder}: 1 of its files are not what was prepared\n"


def test_info_writes_its_picture_into_the_working_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "data", "prepare", "digits")[0] == 0
    code, out, _ = run(capsys, "data", "info", "data")
    assert code == 0 and "digits-8x1.png" in out and "3594" in out
    assert (tmp_path / "digits-8x1.png").is_file()


def test_skipped_files_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = fill(tmp_path / "pictures", 4, 0)
    (source / "bad.png").write_bytes(picture(0)[:50])
    words = ["data", "prepare", "folder", "--source", str(source), "--resolution", "8", "--jobs", "1"]
    words += ["--out", str(tmp_path / "data")]
    code, out, err = run(capsys, *words)
    assert code == 2 and "bad.png: unreadable image" in err and len(err.splitlines()) == 1
    code, out, _ = run(capsys, *words, "--skip-bad")
    assert code == 0 and "left out 1 unusable files, first bad.png" in out


def test_progress_is_a_line_now_and_then(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from repro.verbs import data

    monkeypatch.setattr(data, "LINE_SECONDS", 0.0)
    source = fill(tmp_path / "pictures", 4, 0)
    words = ["data", "prepare", "folder", "--source", str(source), "--resolution", "8", "--jobs", "1"]
    code, _, err = run(capsys, *words, "--shard-images", "2", "--out", str(tmp_path / "data"))
    assert code == 0
    lines = err.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "preparing folder: 0 of 4 (0%)",
        "preparing folder: 2 of 4 (50%)",
        "preparing folder: 4 of 4 (100%)",
    ]


def test_remote_sets_are_linked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, manifest = prepared(tmp_path, 21, shard_images=6)
    words = ["data", "prepare", "folder", "--source", f"file://{folder}", "--out", str(tmp_path / "far")]
    code, out, _ = run(capsys, *words)
    assert code == 0 and "stands for the shards at" in out
    far = tmp_path / "far" / "toy-8x3"
    assert load_manifest(far) == manifest and verify_folder(far) == []
    (folder / "toy-00001.tar").write_bytes((folder / "toy-00002.tar").read_bytes())
    (folder / "toy-00003.tar").unlink()
    problems = verify_folder(far)
    assert len(problems) == 2 and "toy-00001.tar: corrupt shard" in problems[0] and "toy-00003.tar" in problems[1]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["prepare", "imagnet"], 2, "did you mean 'imagenet'"),
        (["prepare", "ffhq"], 2, "ffhq needs --source"),
        (["prepare", "ffhq", "--source", "nowhere"], 3, "70,000 images expected"),
        (["prepare", "ffhq", "--source", ".", "--crop", "dhariwal"], 2, "prepared with the crop resize"),
        (["prepare", "celeba", "--source", ".", "--classes", "2"], 2, "unlabelled"),
        (["prepare", "cifar10", "--source", "nowhere"], 3, "md5 c58f30108f718f92721af3b95e74349a"),
        (["prepare", "cifar10", "--resolution", "64"], 2, "32x32"),
        (["prepare", "folder", "--source", "."], 2, "needs --resolution"),
        (["prepare", "latents"], 2, "latents need --source"),
        (["prepare", "latents", "--source", ".", "--form", "edm2", "--vae", "x", "--captions", "x"], 2, "both"),
        (["verify", "nowhere"], 3, "no such folder"),
        (["info", "."], 3, "empty"),
        ([], 2, "VERB"),
        (["prepar"], 2, "did you mean 'prepare'"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        found, _, err = run(capsys, "data", *words)
    finally:
        os.chdir(before)
    assert found == code and message in err and len(err.splitlines()) == 1


def test_list_tells_where_each_set_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "data", "list")
    assert code == 0
    for entry in CATALOGUE:
        assert entry.title in out and entry.obtain in out and entry.licence in out
    assert "1,281,167 images" in out and "c58f30108f718f92721af3b95e74349a" in out
    assert len(json.loads(run(capsys, "data", "list", "--json")[1])) == len(CATALOGUE)
