"""Train the digits feature extractor: `python -m repro.metrics.train_digits --out FILE`.

The weights file in this package was made by this script. It is committed and pinned by its digest, because another
CPU or another version of torch gives weights that differ in the last bits: never retrain at run time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from repro.data.sources import Digits
from repro.diffusion.draws import derive_seed
from repro.files import write_atomic
from repro.metrics.digits import DigitsNet

SEED = 0
EPOCHS = 30
BATCH = 128
LR = 2e-3
MAX_LR = 4e-3
LABEL_SMOOTHING = 0.05
NOISE = 64.0
"""Largest standard deviation, in grey levels, of the noise added in training (uniform over images). Without it the
features of these few, mirrored images react to a grain that nobody sees more than to a missing class."""


def train(images: Tensor, labels: Tensor, epochs: int = EPOCHS) -> DigitsNet:
    """Train a classifier by cross-entropy: Adam under a one-cycle schedule, last partial batches dropped.

    Args:
        images: (N, 1, 8, 8) uint8.
        labels: (N,) int64.
        epochs: passes over the images.

    Returns:
        the network in eval mode. Bit-identical for equal input on one machine with one thread.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = DigitsNet()
    optimizer = torch.optim.Adam(network.parameters(), lr=LR)
    steps_per_epoch = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=MAX_LR, total_steps=epochs * steps_per_epoch)
    generator = torch.Generator().manual_seed(derive_seed(SEED, "digits-noise"))
    for epoch in range(epochs):
        words = np.random.Philox(key=derive_seed(SEED, "digits-extractor", epoch)).random_raw(len(images))
        order = torch.from_numpy(np.argsort(words, kind="stable"))
        for batch in torch.split(order[: steps_per_epoch * BATCH], BATCH):
            noisy = with_noise(images[batch], generator)
            loss = F.cross_entropy(network(noisy)[1], labels[batch], label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    return network.eval()


def with_noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """uint8 images with Gaussian noise, each of its own standard deviation up to NOISE, rounded and clipped."""
    sd = NOISE * torch.rand(len(images), 1, 1, 1, generator=generator)
    noise = sd * torch.randn(images.shape, generator=generator)
    return (images + noise).round().clamp(0, 255).to(torch.uint8)


def accuracy(network: DigitsNet, images: Tensor, labels: Tensor) -> float:
    """Share of images whose largest logit is the label's."""
    with torch.no_grad():
        return float((network(images)[1].argmax(dim=1) == labels).double().mean())


def weights_file(network: DigitsNet, accuracy_train: float, num_images: int) -> bytes:
    """The network as a safetensors file (float32), with its recipe as metadata."""
    from safetensors.torch import save

    recipe = {
        "accuracy_train": accuracy_train,
        "batch": BATCH,
        "data": "scikit-learn digits and their mirror images",
        "epochs": EPOCHS,
        "label_smoothing": LABEL_SMOOTHING,
        "max_lr": MAX_LR,
        "noise": NOISE,
        "num_images": num_images,
        "script": "repro.metrics.train_digits",
        "seed": SEED,
        "torch": str(torch.__version__),
    }
    # one metadata entry: the order of several is not fixed, and equal weights must give equal bytes
    return save(dict(network.state_dict()), metadata={"recipe": json.dumps(recipe, sort_keys=True)})


def main(arguments: list[str] | None = None) -> None:
    """Command line of the script."""
    parser = argparse.ArgumentParser(prog="python -m repro.metrics.train_digits", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="weights file to write, for example digits.safetensors")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    images, labels = (torch.from_numpy(array) for array in Digits().images(8, 1))
    network = train(images, labels)
    score = accuracy(network, images, labels)
    content = weights_file(network, score, len(images))
    write_atomic(options.out, content)
    print(f"{options.out}: accuracy {score:.4f} on {len(images)} images, sha256 {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()
