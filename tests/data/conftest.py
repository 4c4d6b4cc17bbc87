from __future__ import annotations

from pathlib import Path

import pytest
import torch
from autoencoders import COUNT
from pictures import fill

from repro.data.preparing import prepare_images
from repro.data.sources import ImageNet


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    diffusers = pytest.importorskip("diffusers", reason="the extra `latents` is not installed")
    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        latent_channels=4,
    )
    folder = tmp_path_factory.mktemp("vae")
    model.save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine prepared 16x16 images in three classes, in two shards."""
    root = tmp_path_factory.mktemp("images")
    source = ImageNet(COUNT, "dhariwal", 3)
    folder = root / "data" / f"{source.name}-16x3"
    prepare_images(source, fill(root / "source", COUNT), folder, 16, shard_images=5)
    return folder
