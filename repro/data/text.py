"""Captions -> features of a CLIP text model, for the text-conditional U-ViT on MS-COCO."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from repro.data.contexts import EMPTY_NAME
from repro.data.manifest import Manifest
from repro.data.weights import weights_folder
from repro.errors import CorruptData, MissingPrerequisite

WEIGHTS = "model.safetensors"
TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json")
Features = npt.NDArray[np.float32]


class TextModel:
    """A CLIP text model of transformers, its tokenizer, and the sha256 of its weights.

    Args:
        model: gives `last_hidden_state`.
        tokenizer: pads and cuts to the model's number of tokens.
        sha256: of its weights file.
        device: where it runs.
    """

    def __init__(self, model: Any, tokenizer: Any, sha256: str, device: str = "cpu") -> None:
        self.model = model.eval().requires_grad_(False).to(device)
        self.tokenizer = tokenizer
        self.sha256 = sha256
        self.device = torch.device(device)
        self.tokens = int(model.config.max_position_embeddings)
        self.width = int(model.config.hidden_size)

    @torch.no_grad()
    def features(self, captions: Sequence[str]) -> Features:
        """Last hidden states, (n, tokens, width) float32: 77 x 768 of CLIP ViT-L/14."""
        words = self.tokenizer(
            list(captions), padding="max_length", max_length=self.tokens, truncation=True, return_tensors="pt"
        )
        states = self.model(input_ids=words["input_ids"].to(self.device)).last_hidden_state
        return np.asarray(states.float().cpu().numpy(), dtype=np.float32)


def load_text_model(place: str, device: str = "auto") -> TextModel:
    """Load a CLIP text model from a folder or by its hub name; only safetensors.

    Raises:
        MissingPrerequisite: transformers or the weights are not there.
    """
    try:
        from transformers import CLIPTextModel, CLIPTokenizer
    except ImportError as error:
        raise MissingPrerequisite(f"captions need transformers: pip install 'repro[text]' ({error})") from error
    folder, sha256 = weights_folder(place, WEIGHTS, ["config.json", *TOKENIZER_FILES])
    model = CLIPTextModel.from_pretrained(str(folder), use_safetensors=True, local_files_only=True)
    tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return TextModel(model, tokenizer, sha256, device)


class Captions:
    """The captions of a prepared set of images, in the order of its images.

    Args:
        captions: of each image, one or more.
        model: what turns them into features.
    """

    dtype = "float32"

    def __init__(self, captions: Sequence[Sequence[str]], model: TextModel) -> None:
        self.captions = captions
        self.model = model
        self.shape = (model.tokens, model.width)
        mean = sum(len(c) for c in captions) / max(1, len(captions))
        self.bytes_an_image = int(mean * model.tokens * model.width * 4)
        buffer = io.BytesIO()
        np.save(buffer, model.features([""])[0], allow_pickle=False)
        self.files = ((EMPTY_NAME, buffer.getvalue()),)
        text = json.dumps([list(c) for c in captions], ensure_ascii=True)
        self.options = {
            "text_sha256": model.sha256,
            "captions_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "empty_context_sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
        }

    def features(self, numbers: npt.NDArray[np.int64]) -> list[Features]:
        """Of each image: (k, tokens, width) float32, k its captions."""
        return [self.model.features(self.captions[number]) for number in numbers.tolist()]


def read_captions(path: Path, manifest: Manifest) -> list[list[str]]:
    """COCO's `captions_*.json` -> the captions of each image of a prepared set, by number of annotation.

    Args:
        path: the file.
        manifest: of the prepared images: all of the file's, in order of name, less those that were skipped.

    Raises:
        MissingPrerequisite: there is no such file. CorruptData: it is another kind of file or of another set.
    """
    try:
        content = json.loads(path.read_bytes())
        names = {int(image["id"]): str(image["file_name"]) for image in content["images"]}
        found: dict[str, list[tuple[int, str]]] = {name: [] for name in names.values()}
        for note in content["annotations"]:
            found[names[int(note["image_id"])]].append((int(note["id"]), str(note["caption"])))
    except FileNotFoundError:
        raise MissingPrerequisite(f"{path}: no such file of captions") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptData(f"{path}: no COCO captions ({type(error).__name__}: {error})") from error
    skipped = {PurePosixPath(name).name for name in manifest.skipped}
    kept = sorted(set(found) - skipped)
    if len(kept) != manifest.count:
        raise CorruptData(f"{path}: captions of {len(kept)} images, {manifest.count} images prepared")
    if without := [name for name in kept if not found[name]]:
        raise CorruptData(f"{path}: {without[0]} has no caption")
    return [[caption for _, caption in sorted(found[name])] for name in kept]
