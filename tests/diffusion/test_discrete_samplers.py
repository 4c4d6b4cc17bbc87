"""Ancestral and DDIM sampling: where they end for known data, guidance as published, and what cannot be asked for."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from repro.diffusion.discrete import Process
from repro.diffusion.discrete_denoiser import DiscreteDenoiser
from repro.diffusion.discrete_samplers import ancestral_sampler, ddim_sampler, ddim_step, guide, guided_forward
from repro.diffusion.draws import StackedGenerator
from repro.diffusion.samplers import count_nfe
from repro.errors import UsageError
from repro.models.dit import DiT
from repro.models.udit import UDiT
from repro.sampling import generate

SAMPLERS = [ancestral_sampler, ddim_sampler]


class KnownData(nn.Module):
    """The exact prediction for images that are all m of their class (0 without one) with standard deviation s."""

    img_resolution, in_channels, learn_sigma, label_draws = 4, 4, True, 1

    def __init__(self, label_dim: int = 2, class_dropout: float = 0.1, s: float = 0.2) -> None:
        super().__init__()
        self.label_dim = label_dim
        self.class_dropout = class_dropout
        self.s = s
        self.seen: list[Tensor] = []
        self.abar = DiscreteDenoiser(DiT(8, 1, 0, depth=0, num_heads=1, head_channels=4)).process.abar

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, drop: Tensor | None = None) -> Tensor:
        self.seen.append(t)
        abar = self.abar[t].float().reshape(-1, 1, 1, 1)
        m = torch.zeros(len(x)) if y is None else torch.tensor([-0.5, 0.5, 0.0])[y]
        deviation = (x - abar.sqrt() * m.reshape(-1, 1, 1, 1)) * (1 - abar).sqrt()
        return torch.cat([deviation / (abar * self.s**2 + 1 - abar), torch.full_like(x, -1.0)], dim=1)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_have_the_distribution_of_the_data(sampler: Any) -> None:
    torch.manual_seed(0)
    net = DiscreteDenoiser(KnownData())
    labels = torch.eye(2)[torch.arange(200) % 2]
    images = sampler(net, torch.randn(200, 4, 4, 4), labels, num_steps=100)
    assert images.dtype == torch.float32
    for label, mean in ((0, -0.5), (1, 0.5)):
        found = images[label::2]
        assert float(found.mean()) == pytest.approx(mean, abs=0.03)
        assert float(found.std()) == pytest.approx(0.2, abs=0.03)


def test_networks_are_told_the_original_steps() -> None:
    model = KnownData()
    calls: list[tuple[int, int]] = []

    def callback(step: int, steps: int) -> None:
        calls.append((step, steps))

    ancestral_sampler(
        DiscreteDenoiser(model), torch.zeros(1, 4, 4, 4), torch.eye(2)[:1], callback=callback, num_steps=4
    )
    assert [int(t[0]) for t in model.seen] == [999, 666, 333, 0]
    assert calls == [(0, 4), (1, 4), (2, 4), (3, 4)]


def test_noise_is_drawn_at_every_step_and_not_used_at_the_last() -> None:
    drawn: list[int] = []

    def noise(x: Tensor, last: float) -> Tensor:
        drawn.append(1)
        return torch.full_like(x, last if len(drawn) % 3 == 0 else 0.5)

    net, latents = DiscreteDenoiser(KnownData()), torch.zeros(1, 4, 4, 4)
    first = ancestral_sampler(net, latents, torch.eye(2)[:1], lambda x: noise(x, 0.0), num_steps=3)
    second = ancestral_sampler(net, latents, torch.eye(2)[:1], lambda x: noise(x, 9.0), num_steps=3)
    assert len(drawn) == 6 and torch.equal(first, second)


def test_ddim_without_eta_uses_no_noise() -> None:
    net, latents = DiscreteDenoiser(KnownData()), torch.randn(2, 4, 4, 4)
    plain = ddim_sampler(net, latents, torch.eye(2), num_steps=10)
    assert torch.equal(plain, ddim_sampler(net, latents, torch.eye(2), lambda x: x * 1e3, num_steps=10))
    assert not torch.equal(plain, ddim_sampler(net, latents, torch.eye(2), num_steps=10, eta=1.0))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_computes_in_float32_from_abar_on(eta: float) -> None:
    """At t = 1 of a thousand, 1 - abar has few digits in float32, and the published code has no more."""
    process = Process()
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(1, 2, 3, 3, generator=generator) for _ in range(2))
    t, x0 = torch.tensor([1]), x.clamp(-1, 1)
    one, abar, previous = (np.float32(value) for value in (1, process.abar[1], process.abar[0]))
    recip, recipm1 = (np.float32(v) for v in ((1 / process.abar[1]).sqrt(), (1 / process.abar[1] - 1).sqrt()))
    epsilon = (recip * x.numpy() - x0.numpy()) / recipm1
    sd = np.float32(eta) * np.sqrt((one - previous) / (one - abar)) * np.sqrt(one - abar / previous)
    mean = np.sqrt(previous) * x0.numpy() + np.sqrt(one - previous - sd**2) * epsilon
    found = ddim_step(process, x0, x, t, noise, eta).numpy()
    np.testing.assert_allclose(found, mean + sd * noise.numpy(), rtol=2e-6, atol=2e-7)


def test_ddim_with_more_noise_than_a_step_has_is_refused() -> None:
    with pytest.raises(UsageError, match="eta must be 0 ... 1, not 1.5"):
        ddim_sampler(DiscreteDenoiser(KnownData()), torch.zeros(1, 4, 4, 4), torch.eye(2)[:1], num_steps=10, eta=1.5)
    with pytest.raises(UsageError, match="eta must be"):
        ddim_sampler.CHECK(DiscreteDenoiser(KnownData()), num_steps=10, eta=-1.0)


def test_guidance_moves_the_first_three_channels_alone() -> None:
    conditional, unconditional = torch.full((2, 8, 1, 1), 3.0), torch.full((2, 8, 1, 1), 1.0)
    found = guide(conditional, unconditional, 1.5)[0].flatten().tolist()
    assert found == [4.0] * 3 + [3.0] * 5
    assert guide(conditional, unconditional, 1.5, 4)[0].flatten().tolist() == [4.0] * 4 + [3.0] * 4


def test_published_guided_pass_and_the_sampler_agree() -> None:
    torch.manual_seed(0)
    model = KnownData()
    x, t = torch.randn(2, 4, 4, 4), torch.tensor([666, 666])
    doubled = torch.cat([x, torch.full_like(x, 77.0)])  # the second half is ignored
    y = torch.tensor([0, 1, 2, 2])
    published = guided_forward(model, doubled, torch.cat([t, t]), y, 4.0)
    assert torch.equal(published[:2, :3], published[2:, :3])
    assert not torch.equal(published[:2, 3], published[2:, 3])
    plain = model(x, t, y[:2])
    assert torch.equal(published[:2, 3:], plain[:, 3:])
    guided = ancestral_sampler(DiscreteDenoiser(model), x, torch.eye(2), torch.zeros_like, num_steps=2, guidance=4.0)
    without = ancestral_sampler(DiscreteDenoiser(model), x, torch.eye(2), torch.zeros_like, num_steps=2)
    assert not torch.equal(guided[:, :3], without[:, :3])
    torch.testing.assert_close(guided[:, 3], without[:, 3])


@pytest.mark.parametrize(
    "net, labels, message",
    [
        (KnownData(label_dim=0), None, "guidance 1.5 needs a class-conditional network .* unconditional"),
        (KnownData(class_dropout=0.0), torch.eye(2), "this one has none"),
        (KnownData(), None, "this one is given no labels"),
    ],
)
def test_guidance_that_cannot_be(net: nn.Module, labels: Tensor | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ancestral_sampler(DiscreteDenoiser(net), torch.zeros(2, 4, 4, 4), labels, num_steps=2, guidance=1.5)


@pytest.mark.parametrize("sampler, message", list(zip(SAMPLERS, ["choose 1 to 1000", "no stride"], strict=True)))
def test_more_steps_than_the_schedule_has(sampler: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sampler(DiscreteDenoiser(KnownData(0)), torch.zeros(1, 4, 4, 4), num_steps=1001)


def test_evaluations_are_counted() -> None:
    assert count_nfe(functools.partial(ancestral_sampler, num_steps=250)) == 250
    assert count_nfe(functools.partial(ddim_sampler, num_steps=50, guidance=1.5)) == 100
    assert count_nfe(ancestral_sampler) == 250


def small(**changes: Any) -> DiscreteDenoiser:
    torch.manual_seed(1)
    settings = {"img_resolution": 8, "in_channels": 1, "label_dim": 3, "depth": [1] * 5, "num_heads": 1}
    net = DiscreteDenoiser(UDiT(**{**settings, "head_channels": 8, **changes})).eval()
    for parameter in net.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return net


def test_each_image_depends_on_its_own_seed() -> None:
    sampler = functools.partial(ancestral_sampler, num_steps=3, guidance=1.5)
    whole = generate(small(), sampler, [4, 5, 6], batch=3).images
    parts = torch.cat([generate(small(), sampler, [seed]).images for seed in (4, 5, 6)])
    assert whole.shape == (3, 1, 8, 8) and whole.dtype == torch.uint8
    assert (whole.int() - parts.int()).abs().max() <= 1


@pytest.mark.parametrize("guidance, evaluations", [(1.0, 1), (1.5, 2)])
@pytest.mark.parametrize("sampler, steps", [(ancestral_sampler, 3), (ddim_sampler, 4)])
def test_nfe_is_measured(sampler: Any, steps: int, guidance: float, evaluations: int) -> None:
    """Guidance takes two evaluations a step, whatever the batches are."""
    bound = functools.partial(sampler, num_steps=steps, guidance=guidance)
    found = generate(small(), bound, range(5), batch=2)
    assert found.nfe == evaluations * steps == count_nfe(bound)
    assert len(found.images) == 5


def test_generating_in_batches_fuses_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[DiscreteDenoiser] = []
    original = DiscreteDenoiser.inference

    def inference(net: DiscreteDenoiser) -> DiscreteDenoiser:
        made.append(original(net))
        return made[-1]

    monkeypatch.setattr(DiscreteDenoiser, "inference", inference)
    net = small()
    generate(net, functools.partial(ancestral_sampler, num_steps=2), range(6), batch=2)
    assert len(made) == 3 and made[0] is not net and made[0] is made[1] is made[2]


def test_sampling_leaves_the_network_as_it_was() -> None:
    net = small()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    latents = StackedGenerator([1, 2]).randn((2, 1, 8, 8))
    images = ancestral_sampler(net, latents, torch.eye(3)[:2], torch.zeros_like, num_steps=2)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert net.inference() is not net and net.inference().inference() is not net
    with torch.no_grad():
        net.model.output.weight.mul_(2)
    changed = ancestral_sampler(net, latents, torch.eye(3)[:2], torch.zeros_like, num_steps=2)
    assert not torch.equal(images, changed), "weights that changed are the ones that are sampled from"


def test_a_network_without_branches_is_sampled_from_itself() -> None:
    net = small(ffn="depthwise")
    assert net.inference() is net


def test_rows_of_zeros_are_the_null_class() -> None:
    net = small()
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([10])
    with torch.no_grad():
        null = net.model(x, t.expand(3), torch.full((3,), 3))
        torch.testing.assert_close(net(x, t, torch.zeros(3, 3)), null)
        torch.testing.assert_close(net(x, t), null)
        mixed = net(x, t, torch.tensor([[0.0, 1, 0], [0, 0, 0], [0, 0, 1]]))
        torch.testing.assert_close(mixed, net.model(x, t.expand(3), torch.tensor([1, 3, 2])))
    with pytest.raises(UsageError, match=r"shape \(3, 4\) are not one-hot of 3 classes"):
        net(x, t, torch.zeros(3, 4))
