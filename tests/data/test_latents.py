"""Latents and captions through small networks that are built from configuration, and the streams over them."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from autoencoders import COUNT, Posterior, stand_in

from repro.cli import main
from repro.data import latents
from repro.data.decoding import latent_decoder, missing_decoder
from repro.data.encoders import COCO_FACTOR, DIT_FACTOR, EDM2Latents, MomentLatents, PixelEncoder, ScaledLatents
from repro.data.latents import encode_images, load_vae, prepare_latents
from repro.data.manifest import load_manifest
from repro.data.sources import Latents
from repro.data.stores import ShardStore
from repro.data.stream import Dataset
from repro.data.text import load_text_model
from repro.data.verify import verify_folder
from repro.data.weights import weights_folder
from repro.diffusion.draws import StackedGenerator
from repro.errors import CorruptData, MissingPrerequisite, UsageError
from repro.sampling import generate


def raw(images: Path) -> tuple[torch.Tensor, torch.Tensor]:
    return ShardStore(images, load_manifest(images)).take(np.arange(COUNT))


def test_edm2_stores_moments_of_images_in_0_1(images: Path, tmp_path: Path) -> None:
    folder, manifest = prepare_latents(images, tmp_path, "edm2", stand_in(), batch=2, shard_images=4)
    assert folder.name == "imagenet-dhariwal-16-edm2-2x8"
    assert (manifest.dtype, manifest.channels, manifest.resolution, manifest.count) == ("float32", 8, 2, COUNT)
    assert manifest.options == {
        "latents": "edm2",
        "flip": "none",
        "image_resolution": 16,
        "vae_sha256": "0" * 64,
        "images_sha256": load_manifest(images).sha256,
        "seed": 0,
    }
    pixels, labels = raw(images)
    stored, classes = ShardStore(folder, manifest).take(np.arange(COUNT))
    posterior = Posterior(pixels / 255)
    torch.testing.assert_close(stored, torch.cat([posterior.mean, posterior.std], 1), rtol=1e-6, atol=1e-6)
    assert torch.equal(classes, labels) and verify_folder(folder) == []


def test_dit_stores_one_scaled_sample_of_images_in_minus_1_to_1(images: Path, tmp_path: Path) -> None:
    folder, manifest = prepare_latents(images, tmp_path, "dit", stand_in())
    pixels, _ = raw(images)
    stored, _ = ShardStore(folder, manifest).take(np.arange(COUNT))
    posterior = Posterior(pixels / 127.5 - 1)
    noise = (stored / DIT_FACTOR - posterior.mean) / posterior.std
    assert stored.shape == (COUNT, 4, 2, 2)
    assert 0.75 < float(noise.std()) < 1.25 and abs(float(noise.mean())) < 0.35
    other, again = prepare_latents(images, tmp_path / "again", "dit", stand_in(), batch=2, shard_images=2)
    torch.testing.assert_close(ShardStore(other, again).take(np.arange(COUNT))[0], stored, rtol=1e-5, atol=1e-6)


def test_flips_are_frozen_or_double_the_set(images: Path, tmp_path: Path) -> None:
    pixels, labels = raw(images)
    plain = Posterior(pixels / 255).mean
    mirrored = Posterior(pixels.flip(-1) / 255).mean
    folder, manifest = prepare_latents(images, tmp_path, "edm2", stand_in(), flip="both")
    stored, classes = ShardStore(folder, manifest).take(np.arange(2 * COUNT))
    torch.testing.assert_close(stored[:, :4], torch.cat([plain, mirrored]), rtol=1e-6, atol=1e-6)
    assert classes.tolist() == [*labels.tolist(), *labels.tolist()] and "flip-both" in folder.name
    folder, manifest = prepare_latents(images, tmp_path, "edm2", stand_in(), flip="coin", batch=2)
    stored, _ = ShardStore(folder, manifest).take(np.arange(COUNT))
    as_plain = [torch.allclose(a[:4], b, atol=1e-6) for a, b in zip(stored, plain, strict=True)]
    as_mirror = [torch.allclose(a[:4], b, atol=1e-6) for a, b in zip(stored, mirrored, strict=True)]
    assert [a != b for a, b in zip(as_plain, as_mirror, strict=True)] == [True] * COUNT
    assert 0 < sum(as_mirror) < COUNT


def test_streams_give_what_the_network_sees(images: Path, tmp_path: Path) -> None:
    """EDM2: a fresh draw at each use, keyed by the position alone; DiT: what is stored."""
    prepare_latents(images, tmp_path, "edm2", stand_in())
    prepare_latents(images, tmp_path, "dit", stand_in())
    source = Latents("imagenet-dhariwal", "edm2", 16, 3, COUNT)
    stream = Dataset(source, 2, 8, label_dim=3).open(tmp_path, 1)
    x, y = stream.batch(0, 3 * COUNT)
    assert x.shape == (3 * COUNT, 4, 2, 2) and x.dtype == torch.float32 and y is not None
    assert torch.equal(torch.cat([stream.batch(p, 4)[0] for p in range(0, 24, 4)]), x[:24])
    index = stream.indices(0, 3 * COUNT)
    uses = x[torch.from_numpy(np.flatnonzero(index == index[0]))]
    assert len(uses) == 3 and not torch.equal(uses[0], uses[1])
    stored = stream.all_images()[index[0]][None]
    mean = EDM2Latents().encode(stored)
    deviation = stored[:, 4:] * EDM2Latents().scale[None, :, None, None]
    assert float(((uses - mean) / deviation).abs().max()) < 5
    dit = Dataset(Latents("imagenet-dhariwal", "dit", 16, 3, COUNT), 2, 4).open(tmp_path, 1)
    assert torch.equal(dit.batch(0, COUNT)[0], dit.all_images()[dit.indices(0, COUNT)])
    with pytest.raises(CorruptData, match="image_resolution is 16, 32 expected"):
        folder = tmp_path / "imagenet-dhariwal-32-edm2-2x8"
        (tmp_path / "imagenet-dhariwal-16-edm2-2x8").rename(folder)
        Dataset(Latents("imagenet-dhariwal", "edm2", 32, 3, COUNT), 2, 8).open(tmp_path, 1)


def test_encoders_by_value() -> None:
    one = torch.ones(1, 4, 1, 1)
    x = EDM2Latents().encode(torch.cat([one, 2 * one], 1), 3 * one)  # 1 + 2 * 3 = 7 in every channel
    wanted = [0.5 * (7 - mean) / std for mean, std in ((5.81, 4.17), (3.25, 4.62), (0.12, 3.71), (-2.15, 3.28))]
    assert x.flatten().tolist() == pytest.approx(wanted, rel=1e-6)
    assert EDM2Latents().vae_input(x).flatten().tolist() == pytest.approx([7.0] * 4, rel=1e-6)
    x = MomentLatents().encode(torch.cat([one, one * np.log(4.0)], 1), 3 * one)  # 1 + 2 * 3
    assert x.flatten().tolist() == pytest.approx([7 * COCO_FACTOR] * 4, rel=1e-6)
    clamped = MomentLatents().encode(torch.cat([0 * one, 99 * one], 1), one)
    assert float(clamped[0, 0]) == pytest.approx(np.exp(10) * COCO_FACTOR, rel=1e-5)
    assert ScaledLatents().vae_input(one * DIT_FACTOR).flatten().tolist() == [1.0] * 4
    values = torch.tensor([-2.0, -0.5, 0.5, 0.9, 2.0])[None, None, None]
    assert EDM2Latents().decode(one, lambda z: values).flatten().tolist() == [0, 0, 127, 229, 255], "truncated"
    assert ScaledLatents().decode(one, lambda z: values).flatten().tolist() == [0, 64, 191, 242, 255]
    assert PixelEncoder().encode(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]
    with pytest.raises(ValueError, match="VAE decoder"):
        EDM2Latents().decode(one)


def test_the_second_time_nothing_is_encoded(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare_latents(images, tmp_path, "edm2", stand_in())
    monkeypatch.setattr(latents, "encode_images", None)
    assert prepare_latents(images, tmp_path, "edm2", stand_in()) == first


def test_latents_of_what_is_no_rgb_image_are_refused(images: Path, tmp_path: Path) -> None:
    folder, _ = prepare_latents(images, tmp_path, "edm2", stand_in())
    with pytest.raises(UsageError, match="need RGB images"):
        prepare_latents(folder, tmp_path, "edm2", stand_in())
    with pytest.raises(ValueError, match="noise"):
        encode_images(stand_in(), torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "dit")


def test_a_real_autoencoder_from_configuration(images: Path, tmp_path: Path, vae_folder: Path) -> None:
    vae = load_vae(str(vae_folder), "cpu")
    digest = hashlib.sha256((vae_folder / latents.WEIGHTS).read_bytes()).hexdigest()
    folder, manifest = prepare_latents(images, tmp_path, "edm2", vae)
    assert vae.sha256 == manifest.options["vae_sha256"] == digest
    pixels, _ = raw(images)
    with torch.no_grad():
        posterior = vae.model.encode(pixels / 255).latent_dist
    stored, _ = ShardStore(folder, manifest).take(np.arange(COUNT))
    torch.testing.assert_close(stored, torch.cat([posterior.mean, posterior.std], 1), rtol=1e-4, atol=1e-5)
    decoded = EDM2Latents().decode(EDM2Latents().encode(stored), vae.decode)
    assert decoded.shape == (COUNT, 3, 16, 16) and decoded.dtype == torch.uint8


def test_the_command_prepares_latents(
    images: Path, tmp_path: Path, vae_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data", "prepare", "latents", "--source", str(images), "--form", "dit", "--vae", str(vae_folder)]
    words += ["--out", str(tmp_path), "--device", "cpu", "--flip", "both"]
    assert main(words) == 0
    assert "imagenet-dhariwal-16-dit-flip-both-2x4: prepared: 18 images in 3 classes" in capsys.readouterr().out
    assert main(words) == 0 and "was prepared before" in capsys.readouterr().out
    assert main(["data", "info", str(tmp_path)]) == 0 and "none: these are latents" in capsys.readouterr().out
    assert main([*words[:-4], "--vae", str(tmp_path / "no"), "--out", str(tmp_path / "x")]) == 3
    assert "no such folder" in capsys.readouterr().err


def test_weights_that_are_not_there_or_no_safetensors(tmp_path: Path) -> None:
    with pytest.raises(MissingPrerequisite, match="no such folder, and it cannot be fetched"):
        weights_folder(str(tmp_path / "nothing"), "w.safetensors", [])
    with pytest.raises(MissingPrerequisite, match=r"no config\.json"):
        weights_folder(str(tmp_path), "w.safetensors", ["config.json"])
    (tmp_path / "w.safetensors").write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(CorruptData, match="no safetensors"):
        weights_folder(str(tmp_path), "w.safetensors", [])


@pytest.mark.parametrize(("library", "load"), [("diffusers", load_vae), ("transformers", load_text_model)])
def test_a_missing_extra_says_how_to_install_it(library: str, load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingPrerequisite, match=rf"need {library}: pip install 'repro\["):
        load("anywhere")


def _dataset(form: str) -> Dataset:
    source = Latents("imagenet-dhariwal", form, 16, 3, COUNT)
    return Dataset(source, resolution=2, channels=latents.CHANNELS[form], label_dim=3)


@pytest.mark.parametrize("form", ["edm2", "dit", "coco"])
def test_generated_latents_are_decoded_by_the_vae_that_made_the_data(
    form: str, images: Path, tmp_path: Path, vae_folder: Path
) -> None:
    vae = load_vae(str(vae_folder), "cpu")
    prepare_latents(images, tmp_path / "data", form, vae)
    shutil.copytree(vae_folder, tmp_path / "weights" / "any-name")
    decode = latent_decoder(_dataset(form), tmp_path / "data", tmp_path / "weights", "cpu")

    class Net:
        img_channels, img_resolution, label_dim = 4, 2, 0

    def sampler(net: Any, noise: torch.Tensor, *_: Any) -> torch.Tensor:
        return noise

    found = generate(Net(), sampler, range(11), quantise=decode).images  # type: ignore[arg-type]
    noise = StackedGenerator(list(range(11))).randn((11, 4, 2, 2), torch.float32)
    values = vae.decode({"edm2": EDM2Latents(), "dit": ScaledLatents(), "coco": MomentLatents()}[form].vae_input(noise))
    expected = (255 * values.clamp(0, 1)) if form == "edm2" else (127.5 * values + 128).clamp(0, 255)
    assert found.shape == (11, 3, 16, 16) and found.dtype == torch.uint8
    assert (found.int() - expected.to(torch.uint8).int()).abs().max() <= 1, "batches round differently, by one level"
    assert missing_decoder(_dataset(form), tmp_path / "data", tmp_path / "weights") == []


def test_another_vae_does_not_do(images: Path, tmp_path: Path, vae_folder: Path) -> None:
    dataset = _dataset("edm2")
    assert missing_decoder(dataset, tmp_path / "data", tmp_path / "weights") == [], "the data are what is missing"
    prepare_latents(images, tmp_path / "data", "edm2", stand_in())
    (line,) = missing_decoder(dataset, tmp_path / "data", tmp_path / "weights")
    assert "sha256 0000000000000000" in line and str(tmp_path / "weights") in line and "another one" not in line
    shutil.copytree(vae_folder, tmp_path / "weights" / "sd-vae-ft-mse")
    with pytest.raises(MissingPrerequisite, match="another one lies in .*sd-vae-ft-mse"):
        latent_decoder(dataset, tmp_path / "data", tmp_path / "weights", "cpu")
