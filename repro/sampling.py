"""Generating images, one seed an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from repro.diffusion.discrete_denoiser import DiscreteDenoiser
from repro.diffusion.draws import StackedGenerator
from repro.diffusion.images import to_uint8
from repro.diffusion.precond import Precond
from repro.diffusion.vp_sde import VPDenoiser

LabelRule = Literal["random", "balanced"]
Network = Precond | DiscreteDenoiser | VPDenoiser


class Generated(NamedTuple):
    """images: (N, C, H, W) uint8 on the CPU; nfe: denoiser calls an image, on average where it differs by image."""

    images: Tensor
    nfe: float


class Counted:
    """A denoiser that counts the images it was called for. What else a sampler asks of it is the denoiser's own."""

    def __init__(self, net: Network) -> None:
        self.net = net
        self.images = 0

    def __getattr__(self, name: str) -> Any:
        if name == "net":  # not set yet
            raise AttributeError(name)
        return getattr(self.net, name)

    def __call__(self, x: Tensor, level: Tensor, class_labels: Tensor | None = None) -> Tensor:
        self.images += len(x)
        output: Tensor = self.net(x, level, class_labels)
        return output

    def inference(self) -> Counted:
        """This one, from now on in the form to sample from (of a `DiscreteDenoiser`): made once for all batches."""
        assert isinstance(self.net, DiscreteDenoiser)
        self.net = self.net.inference()
        return self


@torch.no_grad()
def generate(
    net: Network,
    sampler: Callable[..., Tensor],
    seeds: Sequence[int],
    *,
    labels: LabelRule = "random",
    contexts: Callable[[Sequence[int]], Tensor] | None = None,
    batch: int = 256,
    device: torch.device | str = "cpu",
    quantise: Callable[[Tensor], Tensor] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[], None] = lambda: None,
) -> Generated:
    """Images of the given seeds, each a function of its own seed alone (the noise is drawn on the CPU).

    Args:
        net: denoiser in eval mode with `img_resolution`, `img_channels` and `label_dim`.
        sampler: bound sampler, (net, latents, labels, randn_like) -> images in [-1, 1].
        seeds: one an image.
        labels: `random`: each image's label comes from its own generator, as published; `balanced`: label = seed mod
            label_dim, which removes the noise of the class proportions. The generator is advanced equally in both.
        contexts: of a text-conditional network the texts of some seeds, (n, tokens, width), in place of labels.
        batch: images a forward pass; moves float rounding only.
        quantise: how the sampler's images become uint8; part of the scoring protocol;
            None is `to_uint8`, EDM's.
        progress: called as (images done, total) after every sampler step, the current batch counted in proportion.
        stop: called after every sampler step; raises to end the sampling.

    """
    images = []
    counted = Counted(net)
    shape = (net.img_channels, net.img_resolution, net.img_resolution)
    for start in range(0, len(seeds), batch):
        part = list(seeds[start : start + batch])
        generator = StackedGenerator(part)
        latents = generator.randn((len(part), *shape), torch.float32).to(device)
        hot = _labels(generator, part, net.label_dim, labels) if contexts is None else contexts(part)

        def after(step: int, steps: int, start: int = start, count: int = len(part)) -> None:
            stop()
            progress(start + count * (step + 1) // steps, len(seeds))

        def noise(x: Tensor, generator: StackedGenerator = generator) -> Tensor:
            return generator.randn(tuple(x.shape), x.dtype).to(x.device)

        result = sampler(counted, latents, None if hot is None else hot.to(device), noise, after)
        images.append((quantise or to_uint8)(result).cpu())
    return Generated(torch.cat(images), counted.images / max(len(seeds), 1))


def _labels(generator: Any, seeds: Sequence[int], label_dim: int, rule: LabelRule) -> Tensor | None:
    """One-hot labels (N, label_dim) float32, or None for an unconditional network."""
    if not label_dim:
        return None
    drawn = generator.randint(label_dim)  # drawn even where it is then replaced, as published
    chosen = torch.tensor([seed % label_dim for seed in seeds]) if rule == "balanced" else drawn
    return functional.one_hot(chosen, label_dim).float()
