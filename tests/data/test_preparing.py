"""Preparing: the same bytes from the same source, on any number of cores, stopped or not, and never half a folder."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import environment
from pictures import fill, picture, prepared, sixteen_bit, zipped

from repro.data import preparing, shards
from repro.data.images import read_image
from repro.data.manifest import Manifest, load_manifest
from repro.data.preparing import images_a_shard, prepare_images
from repro.data.reading import read_shards
from repro.data.sources import FFHQ, ImageFolder, ImageNet
from repro.errors import CorruptData, MissingPrerequisite, UsageError

TOY = ImageFolder(21, "center-crop", 3, "toy")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def toy(source: Path, out: Path, **options: Any) -> Manifest:
    return prepare_images(TOY, source, out, 8, shard_images=4, **options)


def test_images_and_labels_are_those_of_the_files(tmp_path: Path) -> None:
    folder, manifest = prepared(tmp_path, 21, shard_images=4)
    images, labels = read_shards(folder, manifest)
    names = sorted(path.relative_to(tmp_path / "source").as_posix() for path in (tmp_path / "source").rglob("*.png"))
    assert [shard.count for shard in manifest.shards] == [4, 4, 4, 4, 4, 1]
    assert (manifest.count, manifest.num_classes, manifest.class_counts) == (21, 3, (7, 7, 7))
    for name, image, label in zip(names, images, labels, strict=True):
        content = (tmp_path / "source" / name).read_bytes()
        assert np.array_equal(image.numpy(), read_image(content, "center-crop", 8, 3))
        assert int(label) == int(name[len("class")])
    assert set(contents(folder)) == {
        "manifest.json",
        *(shard.name for shard in manifest.shards),
        *(shard.index_name for shard in manifest.shards),
    }
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["toy-8x3"], "no staging folder is left"


def test_folder_zip_and_processes_give_the_same_bytes(tmp_path: Path) -> None:
    source = fill(tmp_path / "source", 21)
    toy(source, tmp_path / "one")
    toy(zipped(source, tmp_path / "source.zip"), tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(load_manifest(tmp_path / "one").source_sha256) == 64


def test_another_pixel_in_the_source_is_another_manifest(tmp_path: Path) -> None:
    source = fill(tmp_path / "source", 21)
    first = toy(source, tmp_path / "one")
    (source / "class1/img0004.png").write_bytes(picture(99))
    second = toy(source, tmp_path / "two")
    assert first.source_sha256 != second.source_sha256 and first.sha256 != second.sha256


def test_the_same_command_twice_is_harmless(tmp_path: Path) -> None:
    source = fill(tmp_path / "source", 21)
    first = toy(source, tmp_path / "one")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "one").iterdir()}
    assert toy(source, tmp_path / "one") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "one").iterdir()} == before
    with pytest.raises(CorruptData, match="resolution is 8, 16 expected"):
        prepare_images(TOY, source, tmp_path / "one", 16)
    with pytest.raises(CorruptData, match="crop is 'center-crop', 'dhariwal' expected"):
        prepare_images(ImageFolder(21, "dhariwal", 3, "toy"), source, tmp_path / "one", 8)


class Stopped(Exception):
    pass


def test_what_was_finished_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = fill(tmp_path / "source", 21)
    seen: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if done >= 12:
            raise Stopped

    with pytest.raises(Stopped):
        toy(source, tmp_path / "out", progress=stop)
    assert not (tmp_path / "out").exists() and seen[-1] == (12, 21)
    loaded: list[int] = []
    run = preparing._run_job
    monkeypatch.setattr(preparing, "_run_job", lambda *words: (loaded.append(words[-1].number), run(*words))[1])
    toy(source, tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    assert loaded == [3, 4, 5] and seen[3 + 1] == (12, 21)
    toy(source, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_changed_source_is_not_continued(tmp_path: Path) -> None:
    source = fill(tmp_path / "source", 21)

    def stop(done: int, total: int) -> None:
        if done:
            raise Stopped

    with pytest.raises(Stopped):
        toy(source, tmp_path / "out", progress=stop)
    (source / "class0/img0000.png").write_bytes(picture(77, (30, 30)))
    images, _ = read_shards(tmp_path / "out", toy(source, tmp_path / "out"))
    assert np.array_equal(images[0].numpy(), read_image(picture(77, (30, 30)), "center-crop", 8, 3))


@pytest.mark.parametrize("fitting", [0, 1, 5, 13, 17])
def test_a_full_disk_keeps_what_is_finished(fitting: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = fill(tmp_path / "source", 21)
    left = [fitting]

    def fsync(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(UsageError, match="the disk is full") as caught:
        toy(source, tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
    monkeypatch.undo()
    toy(source, tmp_path / "out")
    toy(source, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_shard_that_was_cut_meanwhile_is_made_anew(tmp_path: Path) -> None:
    source = fill(tmp_path / "source", 21)

    def stop(done: int, total: int) -> None:
        if done >= 8:
            raise Stopped

    with pytest.raises(Stopped):
        toy(source, tmp_path / "out", progress=stop)
    staging = next(tmp_path.glob(".out.*.preparing"))
    (staging / "shards" / "toy-00000.tar").write_bytes(b"cut")
    (staging / "shards" / ".toy-00001.tar.1-1.tmp").write_bytes(b"left by a killed writer")
    (staging / "shards" / "toy-00001.index.npy").unlink()
    toy(source, tmp_path / "out")
    toy(source, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_command_continues(how: signal.Signals, tmp_path: Path) -> None:
    """The real command, two processes, stopped in the middle by Ctrl-C or killed; no half shard has its final name."""
    source = tmp_path / "source"
    source.mkdir()
    for number in range(60):
        (source / f"{number:04d}.png").write_bytes(picture(number, (400, 300)))
    words = [sys.executable, "-m", "repro", "data", "prepare", "folder", "--source", str(source), "--resolution", "32"]
    words += ["--shard-images", "4", "--jobs", "2", "--out", str(tmp_path / "data")]
    process = subprocess.Popen(words, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 100
    while not list(tmp_path.glob("data/.*/parts/*.json")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, how)
    _, error = process.communicate(timeout=100)
    if process.returncode != 0:  # 0: it was faster
        assert process.returncode == (130 if how == signal.SIGINT else -9)
        assert not (tmp_path / "data" / "folder-32x3").exists()
        if how == signal.SIGINT:
            assert error == "repro: interrupted; the same command continues\n"
    again = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    folder = tmp_path / "data" / "folder-32x3"
    whole = prepare_images(ImageFolder(), source, tmp_path / "whole", 32, shard_images=4)
    assert load_manifest(folder) == whole and contents(folder) == contents(tmp_path / "whole")


def test_wrong_and_missing_sources_name_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(MissingPrerequisite, match=r"ffhq: nothing at .*70,000 images expected"):
        prepare_images(FFHQ(), tmp_path / "nothing", tmp_path / "out", 64)
    with pytest.raises(MissingPrerequisite, match="1,281,167 images in 1,000 class folders expected"):
        prepare_images(ImageNet(), tmp_path / "nothing", tmp_path / "out", 64)
    source = fill(tmp_path / "source", 6, 0)
    with pytest.raises(CorruptData, match=r"6 images of ffhq found, 70000 expected .*img0000\.png.*--count 6"):
        prepare_images(FFHQ(), source, tmp_path / "out", 64)
    with pytest.raises(CorruptData, match="no class folder|lies in no class folder"):
        prepare_images(ImageNet(), source, tmp_path / "out", 64)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorruptData, match="no images of ffhq found"):
        prepare_images(FFHQ(None), tmp_path / "empty", tmp_path / "out", 64)
    assert not (tmp_path / "out").exists()


BAD = {
    "b-cut.png": picture(1)[:-30],
    "c-16bit.png": sixteen_bit(),
    "d-rgba.png": picture(2, (12, 10), "RGBA"),
    "e-text.jpg": b"not an image",
    "f-empty.png": b"",
    "g-cmyk.jpg": picture(3, (12, 10), "CMYK", "JPEG"),
}


@pytest.mark.parametrize(("name", "workers"), [*((name, 1) for name in sorted(BAD)), ("c-16bit.png", 2)])
def test_a_bad_image_is_refused_by_name(name: str, workers: int, tmp_path: Path) -> None:
    source = fill(tmp_path / "source", 6, 0)
    (source / name).write_bytes(BAD[name])
    with pytest.raises(CorruptData, match=f"{name}: .*--skip-bad") as caught:
        prepare_images(ImageFolder(7), source, tmp_path / "out", 8, shard_images=2, workers=workers)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("as_zip", [False, True])
def test_skip_bad_leaves_out_and_counts(as_zip: bool, tmp_path: Path) -> None:
    source = fill(tmp_path / "source", 6, 0)
    for name, content in BAD.items():
        (source / name).write_bytes(content)
    wanted, _ = read_shards(
        tmp_path / "good", prepare_images(ImageFolder(6), fill(tmp_path / "g", 6, 0), tmp_path / "good", 8)
    )
    path = zipped(source, tmp_path / "source.zip") if as_zip else source
    manifest = prepare_images(ImageFolder(12), path, tmp_path / "out", 8, shard_images=2, skip_bad=True)
    assert manifest.skipped == tuple(sorted(BAD)) and manifest.count == 6
    assert np.array_equal(read_shards(tmp_path / "out", manifest)[0], wanted)
    assert manifest.sha256 == load_manifest(tmp_path / "out").sha256
    again = prepare_images(ImageFolder(12), path, tmp_path / "out", 8, shard_images=2, skip_bad=True)
    assert again == manifest
    with pytest.raises(CorruptData, match="not one usable image"):
        for name in [p.name for p in source.glob("img*")]:
            (source / name).unlink()
        prepare_images(ImageFolder(6), source, tmp_path / "none", 8, skip_bad=True)


def test_convert_takes_other_colour_modes_and_says_so(tmp_path: Path) -> None:
    source = fill(tmp_path / "source", 2, 0)
    (source / "rgba.png").write_bytes(picture(5, (12, 10), "RGBA"))
    manifest = prepare_images(ImageFolder(3), source, tmp_path / "out", 8, convert=True)
    assert manifest.options == {"crop": "center-crop", "convert": True}


def test_shards_are_about_64_megabytes() -> None:
    assert images_a_shard(3 * 32 * 32) * 3 * 32 * 32 == pytest.approx(64e6, rel=0.06)
    assert images_a_shard(3 * 64 * 64) % 250 == 0
    assert images_a_shard(8 * 64 * 64 * 4) == 512
    assert images_a_shard(10**9) == 1


def test_records_hold_at_most_250_images_and_4_megabytes(tmp_path: Path) -> None:
    labels = np.zeros(600, dtype=np.int64)
    small = shards.write_indexed_shard(tmp_path / "a.tar", np.zeros((600, 1, 2, 2), np.uint8), labels)
    large = shards.write_indexed_shard(tmp_path / "b.tar", np.zeros((9, 3, 512, 512), np.uint8), labels[:9])
    from repro.data.index import member_names

    assert len(member_names((tmp_path / small.name).read_bytes())) == 2 * 3
    assert len(member_names((tmp_path / large.name).read_bytes())) == 2 * 2


def test_two_processes_with_one_plan_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second finds the folder there when it wants to publish."""
    source = fill(tmp_path / "source", 21)
    toy(source, tmp_path / "first")
    publish = preparing.publish

    def late(temporary: Path, folder: Path) -> None:
        shutil.copytree(tmp_path / "first", folder)
        publish(temporary, folder)

    monkeypatch.setattr(preparing, "publish", late)
    assert toy(source, tmp_path / "out") == load_manifest(tmp_path / "first")
    assert not list(tmp_path.glob(".out*"))
