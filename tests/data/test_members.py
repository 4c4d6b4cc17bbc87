"""Sources that a user hands over: what is in them, how it is labelled, and what is refused."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import stat
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from pictures import cifar_archive, cifar_batch, fill, picture, zipped

from repro.data import cifar
from repro.data.members import label_members, list_members, read_member
from repro.data.sources import CelebA, Coco
from repro.errors import CorruptData, MissingPrerequisite


def test_folder_and_zip_list_the_same_files_in_sorted_order(tmp_path: Path) -> None:
    folder = fill(tmp_path / "a", 7)
    (folder / ".DS_Store").write_text("x")
    (folder / "readme.txt").write_text("x")
    archive = zipped(folder, tmp_path / "a.zip")
    names = [member.name for member in list_members(folder)]
    assert names == sorted(names) == [member.name for member in list_members(archive)]
    assert names[-1] == "readme.txt" and ".DS_Store" not in names
    assert read_member(archive, names[0]) == read_member(folder, names[0]) == picture(0)


def test_classes_are_ranks_of_folder_names(tmp_path: Path) -> None:
    folder = fill(tmp_path / "a", 7)
    (folder / "readme.txt").write_text("x")
    labelled = label_members(folder, list_members(folder), 3)
    assert [(m.name, m.label) for m in labelled][:4] == [
        ("class0/img0000.png", 0),
        ("class0/img0003.png", 0),
        ("class0/img0006.png", 0),
        ("class1/img0001.png", 1),
    ]
    nested = fill(tmp_path / "b" / "train", 7)
    assert [m.label for m in label_members(nested.parent, list_members(nested.parent), 3)] == [0, 0, 0, 1, 1, 2, 2]
    assert {m.label for m in label_members(folder, list_members(folder), 0)} == {0}


def test_dataset_json_wins_over_folders(tmp_path: Path) -> None:
    folder = fill(tmp_path / "a", 4, 0)
    labels = [[f"img{number:04d}.png", (number + 1) % 2] for number in range(4)]
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert [m.label for m in label_members(folder, list_members(folder), 2)] == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no list of labels"),
        ("[]", "no list of labels"),
        ('{"labels": 3}', "no list of labels"),
        ('{"labels": [["img0000.png", 0]]}', "img0001.png the class None"),
        ('{"labels": [["img0000.png", "a"]]}', "img0000.png the class 'a'"),
        ('{"labels": [["img0000.png", 0], ["img0001.png", 0]]}', "class 1 has no image"),
        ('{"labels": [["img0000.png", 0], ["img0001.png", 7]]}', "class 1 has no image"),
        ('{"labels": null}', "no dataset.json|no class folder"),
    ],
)
def test_a_wrong_dataset_json_is_named(text: str, message: str, tmp_path: Path) -> None:
    folder = fill(tmp_path / "a", 2, 0)
    (folder / "dataset.json").write_text(text)
    with pytest.raises(CorruptData, match=message):
        label_members(folder, list_members(folder), 2)


def test_a_missing_class_folder_is_noticed(tmp_path: Path) -> None:
    folder = fill(tmp_path / "a", 7, 2)
    with pytest.raises(CorruptData, match="2 class folders found, 3 expected .*'class0'.*'class1'"):
        label_members(folder, list_members(folder), 3)
    (folder / "class2").mkdir()
    with pytest.raises(CorruptData, match="class folder 'class2' holds no image"):
        label_members(folder, list_members(folder), 3)
    (folder / "stray.png").write_bytes(picture(0))
    with pytest.raises(CorruptData, match=r"stray\.png lies in no class folder"):
        label_members(folder, list_members(folder), 3)


@pytest.mark.parametrize("name", ["../evil.png", "/evil.png", "a/../../evil.png", "a\\..\\evil.png", "C:/evil.png"])
def test_zip_slip_is_refused(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("good.png", picture(0))
        archive.writestr(name, picture(1))
    with pytest.raises(CorruptData, match=r"evil\.png.* would lie outside"):
        list_members(tmp_path / "a.zip")


def test_links_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "../../secret")
    with pytest.raises(CorruptData, match=r"link\.png.*symbolic link"):
        list_members(tmp_path / "a.zip")
    folder = fill(tmp_path / "a", 2, 0)
    (folder / "inside.png").symlink_to(folder / "img0000.png")
    assert len(list_members(folder)) == 3
    (tmp_path / "secret").write_text("x")
    for target in ("../secret", "nowhere"):
        (folder / "outside.png").symlink_to(target)
        with pytest.raises(CorruptData, match=r"outside\.png is a link that leads outside"):
            list_members(folder)
        (folder / "outside.png").unlink()
    os.mkfifo(folder / "pipe.png")
    with pytest.raises(CorruptData, match=r"pipe\.png is no regular file"):
        list_members(folder)


def test_damaged_and_missing_sources(tmp_path: Path) -> None:
    with pytest.raises(MissingPrerequisite, match="no such folder or zip"):
        list_members(tmp_path / "nothing")
    (tmp_path / "a.zip").write_bytes(b"PK no zip")
    with pytest.raises(CorruptData, match="no zip"):
        list_members(tmp_path / "a.zip")
    archive = zipped(fill(tmp_path / "b", 3, 0), tmp_path / "b.zip")
    content = bytearray(archive.read_bytes())
    content[100] ^= 1
    archive.write_bytes(content)
    with pytest.raises(CorruptData, match=r"img0002\.png"):
        read_member(archive, "img0002.png")


def test_celeba_takes_the_training_split(tmp_path: Path) -> None:
    folder = fill(tmp_path / "img_align_celeba", 5, 0)
    source = CelebA(count=3)
    with pytest.raises(MissingPrerequisite, match=r"no list_eval_partition\.txt"):
        source.select(folder, list_members(folder))
    lines = [f"img{number:04d}.png {number // 3}" for number in range(5)]
    (tmp_path / "list_eval_partition.txt").write_text("\n".join(lines))
    assert [m.name for m in source.select(folder, list_members(folder))] == [f"img{n:04d}.png" for n in range(3)]
    (folder / "img0001.png").unlink()
    with pytest.raises(CorruptData, match=r"img0001\.png of list_eval_partition\.txt is missing"):
        source.select(folder, list_members(folder))


def test_coco_takes_its_split(tmp_path: Path) -> None:
    for split in ("train2014", "val2014"):
        (tmp_path / split).mkdir()
        for number in (9, 30):
            (tmp_path / split / f"COCO_{split}_{number:012d}.jpg").write_bytes(picture(number))
    names = [m.name for m in Coco(split="val2014").select(tmp_path, list_members(tmp_path))]
    assert names == ["val2014/COCO_val2014_000000000009.jpg", "val2014/COCO_val2014_000000000030.jpg"]


def batches() -> dict[str, bytes]:
    return {f"data_batch_{number}": cifar_batch(10, number) for number in range(1, 6)}


@pytest.fixture
def small_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive of five batches of ten images that takes the place of the real one."""
    path = cifar_archive(tmp_path / "cifar-10-python.tar.gz", batches())
    known = tuple((name, hashlib.md5(content).hexdigest()) for name, content in batches().items())
    url, name, _, _ = cifar.known_files()
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr(cifar, "known_files", lambda: (url, name, digest, known))
    return path


def test_cifar_batches_are_read_in_order(small_cifar: Path, tmp_path: Path) -> None:
    images, labels, sha256 = cifar.read_training_set(small_cifar)
    assert images.shape == (50, 3, 32, 32) and labels.tolist() == list(range(10)) * 5
    first = pickle.loads(cifar_batch(10, 1))["data"][0]
    assert np.array_equal(images[0].ravel(), first), "planes of red, green and blue, row by row"
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name, content in batches().items():
        (folder / name).write_bytes(content)
    assert cifar.find_archive(tmp_path / "cifar-10-python.tar.gz", tmp_path) == small_cifar
    assert cifar.read_training_set(folder)[2] == sha256
    (folder / "data_batch_3").write_bytes(cifar_batch(10, 99))
    with pytest.raises(CorruptData, match=r"data_batch_3: md5 [0-9a-f]{32} found, [0-9a-f]{32} expected"):
        cifar.read_training_set(folder)
    (folder / "data_batch_3").unlink()
    with pytest.raises(MissingPrerequisite, match="data_batch_3"):
        cifar.read_training_set(folder)


def test_another_archive_names_both_digests(small_cifar: Path) -> None:
    small_cifar.write_bytes(small_cifar.read_bytes() + b"x")
    with pytest.raises(CorruptData, match=r"md5 [0-9a-f]{32} found, [0-9a-f]{32} expected"):
        cifar.read_training_set(small_cifar)


def test_the_archive_is_downloaded_and_checked(
    small_cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, name, digest, known = cifar.known_files()
    monkeypatch.setattr(cifar, "known_files", lambda: (small_cifar.as_uri(), name, digest, known))
    path = cifar.find_archive(None, tmp_path / "cache")
    assert path.read_bytes() == small_cifar.read_bytes()
    monkeypatch.setattr(cifar, "known_files", lambda: (small_cifar.as_uri(), name, "0" * 32, known))
    with pytest.raises(CorruptData, match=f"md5 {digest} came, {'0' * 32} expected"):
        cifar.find_archive(None, tmp_path / "other")
    assert list((tmp_path / "other").iterdir()) == []
    monkeypatch.setattr(cifar, "known_files", lambda: ((tmp_path / "no").as_uri(), name, digest, known))
    with pytest.raises(MissingPrerequisite, match="cannot download .*--source.*md5"):
        cifar.find_archive(None, tmp_path / "third")


def test_a_missing_archive_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(MissingPrerequisite, match=r"c58f30108f718f92721af3b95e74349a"):
        cifar.find_archive(tmp_path / "nothing", tmp_path)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, ("owned",))


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(Evil()),
        pickle.dumps({"data": Evil(), "labels": [0]}),
        pickle.dumps({"data": np.zeros((2, 3072), np.float32), "labels": [0, 1]}),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 10]}),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}),
        pickle.dumps([1]),
        b"",
        cifar_batch()[:500],
    ],
)
def test_foreign_pickles_are_not_run(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CorruptData, match="no CIFAR-10 batch"):
        cifar.parse_batch(content, "x")
    assert not (tmp_path / "owned").exists()


def test_a_linked_batch_in_the_archive_is_refused(small_cifar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(small_cifar, "w:gz") as archive:
        for name, content in batches().items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            if name == "data_batch_2":
                info.type, info.linkname, info.size = tarfile.SYMTYPE, "/etc/passwd", 0
            archive.addfile(info, io.BytesIO(content))
    url, name, _, known = cifar.known_files()
    digest = hashlib.md5(small_cifar.read_bytes()).hexdigest()
    monkeypatch.setattr(cifar, "known_files", lambda: (url, name, digest, known))
    with pytest.raises(CorruptData, match="data_batch_2 is no regular file"):
        cifar.read_training_set(small_cifar)
