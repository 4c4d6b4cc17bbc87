"""EDM2's preconditioning with its uncertainty head, and its loss."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repro.diffusion.draws import StepDraws
from repro.diffusion.edm2 import EDM2Precond, UncertaintyLoss
from repro.models.adm import DhariwalUNet
from repro.models.edm2 import EDM2UNet

SMALL: dict[str, Any] = {
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
    "channels_per_head": 8,
}


def make(label_dim: int = 3, **options: Any) -> EDM2Precond:
    torch.manual_seed(0)
    return EDM2Precond(EDM2UNet(8, 2, label_dim, **SMALL, **options))


def test_a_fresh_network_returns_its_input_times_c_skip() -> None:
    """Section 16 of the specification, point 3: not x, as the paper says."""
    x, sigma = torch.randn(2, 2, 8, 8), torch.tensor([0.1, 5.0])
    c_skip = (0.25 / (sigma**2 + 0.25)).reshape(2, 1, 1, 1)
    torch.testing.assert_close(make()(x, sigma, torch.eye(3)[:2]), c_skip * x)


def test_network_stands_as_unet_and_is_found_as_model() -> None:
    net = make()
    assert net.model is net.unet
    assert next(iter(net.state_dict())) == "unet.out_gain"
    assert not any(name.startswith("model.") for name in net.state_dict())


def test_labels_none_is_a_row_of_zeros() -> None:
    net = make().eval()
    nn.init.ones_(net.unet.out_gain)  # type: ignore[arg-type]
    x, sigma = torch.randn(2, 2, 8, 8), torch.tensor(2.0)
    torch.testing.assert_close(net(x, sigma), net(x, sigma, torch.zeros(2, 3)))


def test_unconditional_network_ignores_labels() -> None:
    net = make(label_dim=0).eval()
    nn.init.ones_(net.unet.out_gain)  # type: ignore[arg-type]
    x, sigma = torch.randn(2, 2, 8, 8), torch.tensor(2.0)
    assert torch.equal(net(x, sigma, torch.eye(7)[:2]), net(x, sigma))


@pytest.mark.parametrize(
    "options, factor",
    [({}, math.sqrt(2)), ({"mp_fourier": False}, 1.0)],
)
def test_head_by_hand(options: dict[str, Any], factor: float) -> None:
    net = make(**options).eval()
    sigma = torch.tensor([0.3, 7.0])
    features = (torch.outer(sigma.log() / 4, net.logvar_fourier.freqs) + net.logvar_fourier.phases).cos() * factor
    weight = net.logvar_linear.weight
    assert isinstance(weight, Tensor)
    unit = weight / (weight.square().mean().sqrt() + 1e-4) / math.sqrt(128)
    _, u = net(torch.zeros(2, 2, 8, 8), sigma, return_logvar=True)
    torch.testing.assert_close(u, (features @ unit.T).reshape(2, 1, 1, 1))


def test_head_of_the_adm_network_has_a_bias_and_starts_uniform() -> None:
    net = EDM2Precond(DhariwalUNet(8, 2, 2, model_channels=8, channel_mult=(1, 2), num_blocks=1))
    assert [name for name in net.state_dict() if name.startswith("logvar_linear")] == [
        "logvar_linear.weight",
        "logvar_linear.bias",
    ]
    weight, bias = net.logvar_linear.weight, net.logvar_linear.bias
    assert isinstance(weight, Tensor) and isinstance(bias, Tensor)
    assert weight.abs().max() <= 1 / math.sqrt(128) and 0 < bias.abs() <= 1 / math.sqrt(128)


class Constant(nn.Module):
    """A denoiser that always returns zero with an uncertainty of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.u = nn.Parameter(torch.zeros(2, 1, 1, 1))

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None, return_logvar: bool) -> Any:
        assert return_logvar
        self.sigma = sigma
        return torch.zeros_like(x), self.u


def test_loss_by_hand() -> None:
    net, images = Constant(), torch.randn(2, 3, 4, 4)
    net.u.data.copy_(torch.tensor([0.5, -1.0]).reshape(2, 1, 1, 1))
    loss = UncertaintyLoss()(net, images, draws=StepDraws(0, 0, 2))
    weight = (net.sigma**2 + 0.25) / (net.sigma * 0.5) ** 2
    torch.testing.assert_close(loss, weight / net.u.exp() * images**2 + net.u)


def test_uncertainty_learns_the_log_of_the_loss() -> None:
    """At the minimum u is the log of the mean weighted error (Equation 21), where its gradient vanishes."""
    net, images = Constant(), torch.randn(2, 3, 4, 4)
    UncertaintyLoss()(net, images, draws=StepDraws(0, 0, 2))
    weight = (net.sigma**2 + 0.25) / (net.sigma * 0.5) ** 2
    net.u.data.copy_((weight * images**2).mean((1, 2, 3), keepdim=True).log())
    torch.autograd.backward(UncertaintyLoss()(net, images, draws=StepDraws(0, 0, 2)).mean())
    assert net.u.grad is not None
    torch.testing.assert_close(net.u.grad, torch.zeros_like(net.u), atol=1e-6, rtol=0)


def test_noise_levels_are_those_of_latents() -> None:
    levels = UncertaintyLoss().sample_sigma(20000, StepDraws(1, 0, 20000)).log()
    assert float(levels.mean()) == pytest.approx(-0.4, abs=0.03)
    assert float(levels.std()) == pytest.approx(1.0, abs=0.03)
