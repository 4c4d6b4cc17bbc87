"""Captions as texts to train with and to generate from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from autoencoders import COUNT, stand_in
from pictures import picture

from repro.cli import main
from repro.data.contexts import EMPTY_NAME, empty_context
from repro.data.latents import prepare_latents
from repro.data.manifest import Manifest
from repro.data.preparing import prepare_images
from repro.data.sources import Coco, ImageNet, Latents
from repro.data.stores import ShardStore
from repro.data.stream import Dataset
from repro.data.text import Captions, TextModel, load_text_model, read_captions
from repro.data.verify import verify_folder
from repro.errors import CorruptData, MissingPrerequisite, UsageError
from repro.launch.prompts import open_prompts


class Words:
    """A text model that can be computed by hand: every token is the caption's length."""

    sha256, tokens, width = "1" * 64, 5, 3

    def features(self, captions: Any) -> Any:
        return np.stack([np.full((5, 3), len(caption), np.float32) for caption in captions])


def coco(tmp: Path) -> tuple[Path, Manifest, Path]:
    """Three prepared images with 1, 2 and 3 captions of different lengths, and their annotations."""
    names = [f"COCO_train2014_{number:012d}.jpg" for number in (3, 5, 20)]
    (tmp / "source").mkdir()
    for number, name in enumerate(names):
        (tmp / "source" / name).write_bytes(picture(number, (16, 16), "RGB", "JPEG"))
    folder = tmp / "data" / "coco-train2014-16x3"
    manifest = prepare_images(Coco(3), tmp / "source", folder, 16)
    annotations = {
        "images": [{"id": 7 - k, "file_name": name} for k, name in enumerate(names)],
        "annotations": [
            {"id": 100 - 10 * k - j, "image_id": 7 - k, "caption": "x" * (10 * k + j)}
            for k in range(3)
            for j in range(k + 1)
        ],
    }
    path = tmp / "captions.json"
    path.write_text(json.dumps(annotations))
    return folder, manifest, path


def captioned(tmp: Path) -> tuple[Path, Captions]:
    """The images of `coco`, and their captions as `Words` reads them."""
    images, manifest, path = coco(tmp)
    return images, Captions(read_captions(path, manifest), Words())  # type: ignore[arg-type]


def test_captions_are_read_in_the_order_of_the_images(tmp_path: Path) -> None:
    _, manifest, path = coco(tmp_path)
    lengths = [[len(caption) for caption in captions] for captions in read_captions(path, manifest)]
    assert lengths == [[0], [11, 10], [22, 21, 20]], "by number of annotation"
    content = json.loads(path.read_text())
    content["annotations"] = [note for note in content["annotations"] if note["image_id"] != 6]
    path.write_text(json.dumps(content))
    with pytest.raises(CorruptData, match=r"COCO_train2014_000000000005\.jpg has no caption"):
        read_captions(path, manifest)
    content["images"] = content["images"][:2]
    path.write_text(json.dumps({**content, "annotations": []}))
    with pytest.raises(CorruptData, match="captions of 2 images, 3 images prepared"):
        read_captions(path, manifest)
    path.write_text("{}")
    with pytest.raises(CorruptData, match="no COCO captions"):
        read_captions(path, manifest)
    with pytest.raises(MissingPrerequisite, match="no such file"):
        read_captions(tmp_path / "nothing.json", manifest)


def test_contexts_of_a_caption_chosen_at_each_use(tmp_path: Path) -> None:
    images, captions = captioned(tmp_path)
    folder, made = prepare_latents(images, tmp_path / "data", "coco", stand_in(), captions=captions)
    assert made.options["text_sha256"] == "1" * 64 and made.context_shape == (5, 3)
    source = Latents("coco-train2014", "coco", 16, 0, 3, text=True)
    stream = Dataset(source, 2, 8).open(tmp_path / "data", 0)
    x, y = stream.batch(0, 300)
    contexts = stream.contexts(0, 300)
    assert x.shape == (300, 4, 2, 2) and y is None and contexts.shape == (300, 5, 3)
    assert torch.equal(stream.contexts(150, 20), contexts[150:170])
    index = stream.indices(0, 300)
    for image, lengths in enumerate(([0], [10, 11], [20, 21, 22])):
        seen = contexts[torch.from_numpy(np.flatnonzero(index == image)), 0, 0]
        found, counts = np.unique(seen.numpy(), return_counts=True)
        assert found.tolist() == lengths and counts.min() > 100 / len(lengths) * 0.6
    assert torch.equal(torch.from_numpy(empty_context(folder, made)), torch.zeros(5, 3))
    assert verify_folder(folder) == []
    (folder / EMPTY_NAME).write_bytes(b"")
    assert len(verify_folder(folder)) == 1


def test_the_image_of_a_seed_follows_one_caption_of_that_number(tmp_path: Path) -> None:
    images, captions = captioned(tmp_path)
    prepare_latents(images, tmp_path / "data", "coco", stand_in(), captions=captions)
    data = Dataset(Latents("coco-train2014", "coco", 16, 0, 3, text=True), 2, 8, context_tokens=5, context_dim=3)
    texts = data.open(tmp_path / "data", 0).contexts_of
    seeds = list(range(300))
    drawn = texts(seeds)
    assert drawn.shape == (300, 5, 3) and torch.equal(torch.cat([texts(seeds[:7]), texts(seeds[7:])]), drawn)
    for image, lengths in enumerate(([0], [10, 11], [20, 21, 22])):
        found, counts = np.unique(drawn[image::3, 0, 0].numpy(), return_counts=True)
        assert found.tolist() == lengths and counts.min() > 100 / len(lengths) * 0.6


def test_prompts_of_another_text_model_are_refused(tmp_path: Path) -> None:
    images, captions = captioned(tmp_path)
    for name in ("train", "val"):
        prepare_latents(images, tmp_path / name, "coco", stand_in(), captions=captions)
    data = Dataset(Latents("coco-train2014", "coco", 16, 0, 3, text=True), 2, 8, context_tokens=5, context_dim=3)
    experiment: Any = SimpleNamespace(data=data, denoiser=SimpleNamespace(empty_context=None), prompts=data)
    trained = data.open(tmp_path / "train", 0)
    prompts = open_prompts(experiment, experiment, tmp_path / "val", trained)
    assert prompts is not None and torch.equal(experiment.denoiser.empty_context, torch.zeros(5, 3))
    manifest_file = next((tmp_path / "val").glob("*/manifest.json"))
    manifest_file.write_text(manifest_file.read_text().replace("1" * 64, "2" * 64))
    with pytest.raises(UsageError, match=r"texts were read by another model \(2222222222222222\)"):
        open_prompts(experiment, experiment, tmp_path / "val", trained)


def test_a_damaged_caption_stops_training_and_is_named(tmp_path: Path) -> None:
    images, captions = captioned(tmp_path)
    folder, made = prepare_latents(images, tmp_path / "data", "coco", stand_in(), captions=captions)
    store = ShardStore(folder, made)
    entry = store._indices[0][2]
    shard = folder / made.shards[0].name
    content = bytearray(shard.read_bytes())
    content[int(entry["context"]) + 70] ^= 1  # the second caption of the third image
    shard.write_bytes(content)
    assert store.contexts(np.array([2]), np.array([0])).shape == (1, 5, 3)
    with pytest.raises(CorruptData, match=r"-000\.c\.npy, image 2, is damaged"):
        store.contexts(np.array([2]), np.array([1]))
    with pytest.raises(CorruptData, match=r"-000\.c\.npy"):
        raise CorruptData("; ".join(verify_folder(folder)))


def test_a_set_without_captions_says_so(images: Path) -> None:
    stream = Dataset(ImageNet(COUNT, "dhariwal", 3), 16, 3).open(images.parent, 0)
    with pytest.raises(UsageError, match="no captions"):
        stream.contexts(0, 2)


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers", reason="the extra `text` is not installed")
    folder = tmp_path_factory.mktemp("text")
    letters = [chr(number) for number in range(97, 123)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=77, bos_token_id=len(words) - 2, eos_token_id=len(words) - 1,
        pad_token_id=len(words) - 1,
    )  # fmt: skip
    transformers.CLIPTextModel(config).save_pretrained(folder)
    return folder


def test_a_real_text_model_from_configuration(text_folder: Path) -> None:
    model = load_text_model(str(text_folder), "cpu")
    assert isinstance(model, TextModel) and (model.tokens, model.width) == (77, 16)
    assert model.sha256 == hashlib.sha256((text_folder / "model.safetensors").read_bytes()).hexdigest()
    features = model.features(["a cat", "a dog", "word " * 200])
    assert features.shape == (3, 77, 16) and features.dtype == np.float32
    assert np.allclose(features[0, :2], features[1, :2], atol=1e-5), "causal: start and `a` are the same"
    assert not np.allclose(features[0, 2], features[1, 2], atol=1e-3)
    assert np.array_equal(model.features(["a cat"])[0], model.features(["a cat"])[0])


def test_the_command_prepares_captions(
    tmp_path: Path, text_folder: Path, vae_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, _, path = coco(tmp_path)
    words = ["data", "prepare", "latents", "--source", str(images), "--form", "coco", "--vae", str(vae_folder)]
    words += ["--text-model", str(text_folder), "--captions", str(path), "--device", "cpu", "--out", str(tmp_path)]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "coco-train2014-16-coco-2x8: prepared: 3 images" in out
    stream = Dataset(Latents("coco-train2014", "coco", 16, 0, 3, text=True), 2, 8).open(tmp_path, 0)
    assert stream.contexts(0, 4).shape == (4, 77, 16)
