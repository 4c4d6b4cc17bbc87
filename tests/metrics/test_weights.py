"""Weights: where they are looked for, and a download that keeps nothing but the right file."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from repro.errors import CorruptData, MissingPrerequisite
from repro.metrics.weights import WeightsFile, download, find, load_state, missing_line, obtain, search_folders

CONTENT = b"weights" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
FILE = WeightsFile("some weights", ("a.pth", "b.pth"), DIGEST[:8], "http://127.0.0.1:9/a.pth")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("REPRO_WEIGHTS", raising=False)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    served = tmp_path / "served"
    served.mkdir()
    (served / "a.pth").write_bytes(CONTENT)
    (served / "other.pth").write_bytes(b"<html>")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(served)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_search_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "home" / "hub" / "checkpoints"
    assert search_folders() == [cache] and find(FILE) is None
    cache.mkdir(parents=True)
    (cache / "b.pth").write_bytes(CONTENT)
    assert find(FILE) == cache / "b.pth" and missing_line(FILE) is None
    monkeypatch.setenv("REPRO_WEIGHTS", str(tmp_path / "env"))
    assert search_folders() == [tmp_path / "env", cache] and find(FILE) == cache / "b.pth"
    assert search_folders(tmp_path / "given") == [tmp_path / "given", cache]
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "a.pth").write_bytes(CONTENT)
    assert obtain(FILE, FILE.sha256, tmp_path / "given") == tmp_path / "given" / "a.pth"


def test_every_file_is_checked(tmp_path: Path) -> None:
    with pytest.raises(MissingPrerequisite, match=r"a\.pth: some weights not found.*doctor --download.*b\.pth"):
        obtain(FILE, FILE.sha256, tmp_path)
    (tmp_path / "a.pth").write_bytes(b"other")
    with pytest.raises(CorruptData, match=f"expected {FILE.sha256}"):
        obtain(FILE, FILE.sha256, tmp_path)
    with pytest.raises(MissingPrerequisite, match=f"extractor_sha256 = '{hashlib.sha256(b'other').hexdigest()}'"):
        obtain(FILE, "", tmp_path)


def test_download(server: str, tmp_path: Path) -> None:
    path = download(FILE, tmp_path / "w", f"{server}/a.pth")
    assert path == tmp_path / "w" / "a.pth" and path.read_bytes() == CONTENT
    path.unlink()
    with pytest.raises(CorruptData, match="nothing was kept"):
        download(FILE, tmp_path / "w", f"{server}/other.pth")
    for url in (f"{server}/nothing.pth", FILE.url):
        with pytest.raises(MissingPrerequisite, match=r"cannot fetch .* copy that file to"):
            download(FILE, tmp_path / "w", url)
    assert list((tmp_path / "w").iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"junk", "tensor"])
def test_files_that_are_no_state_dict(content: bytes | str, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(torch.zeros(3), path)
    with pytest.raises(CorruptData, match="not the weights of X"):
        load_state(path, "X")
