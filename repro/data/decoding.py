"""Generated latents -> images, by the very VAE that made the latents which the network was trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from repro.data.encoders import ENCODERS
from repro.data.latents import WEIGHTS, load_vae
from repro.data.manifest import load_manifest
from repro.data.stream import Dataset
from repro.data.weights import file_sha256
from repro.errors import MissingPrerequisite
from repro.metrics.weights import StrPath, search_folders

BATCH = 8
"""Latents a pass of the decoder: at 512x512 its activations need gigabytes."""
Decoder = Callable[[Tensor], Tensor]


def find_vae(dataset: Dataset, data_dir: Path, weights_dir: StrPath | None) -> Path:
    """The folder of the VAE that the data set's manifest names by its sha256, below one of the folders of weights.

    Raises:
        MissingPrerequisite: the data are not prepared, or no such VAE lies there; says which and where.
    """
    folder = dataset.folder(data_dir)
    wanted = load_manifest(folder).options.get("vae_sha256", "")
    places = [path for root in search_folders(weights_dir) for path in sorted(root.glob(f"*/{WEIGHTS}"))]
    for path in places:
        if file_sha256(path) == wanted:
            return path.parent
    looked = ", ".join(map(str, search_folders(weights_dir)))
    others = f"; another one lies in {places[0].parent}" if places else ""
    raise MissingPrerequisite(
        f"the VAE that made {folder} decodes what is generated: put its folder (config.json and {WEIGHTS} with sha256 "
        f"{wanted[:16]}...) into one of {looked}; --weights names another{others}"
    )


def latent_decoder(dataset: Dataset, data_dir: Path, weights_dir: StrPath | None, device: str) -> Decoder:
    """(N, 4, h, w) network output -> (N, 3, 8 h, 8 w) uint8, as the paper of the latents decodes and truncates.

    Raises:
        MissingPrerequisite: see `find_vae`; or diffusers is not installed.
    """
    vae = load_vae(str(find_vae(dataset, data_dir, weights_dir)), device)
    encoder = ENCODERS[dataset.source.form]()

    def decode(x: Tensor) -> Tensor:
        return torch.cat([encoder.decode(part.cpu(), vae.decode) for part in torch.split(x, BATCH)])

    return decode


def missing_decoder(dataset: Dataset, data_dir: Path, weights_dir: StrPath | None) -> list[str]:
    """One line where generated latents could not be decoded; none for pixels, or where the data themselves miss."""
    if dataset.source.form == "pixels" or dataset.missing(data_dir):
        return []
    try:
        find_vae(dataset, data_dir, weights_dir)
    except MissingPrerequisite as error:
        return [str(error)]
    return []
