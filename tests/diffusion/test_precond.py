"""Preconditioning: coefficients by hand, calling conventions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from repro.diffusion.precond import EDMPrecond, Precond, VEPrecond, VPPrecond, iDDPMPrecond
from repro.errors import UsageError


class Probe(nn.Module):
    """Network that remembers its inputs and returns a constant for every channel."""

    def __init__(self, label_dim: int = 0, out_channels: int = 2) -> None:
        super().__init__()
        self.img_resolution, self.in_channels, self.label_dim = 4, 2, label_dim
        self.values = torch.arange(1.0, out_channels + 1)[None, :, None, None]
        self.seen: tuple[Tensor, Tensor, Tensor | None] | None = None

    def forward(self, x: Tensor, noise: Tensor, labels: Tensor | None = None, **extra: Tensor) -> Tensor:
        self.seen = (x, noise, labels)
        self.extra = extra
        return self.values.expand(x.shape[0], -1, *x.shape[2:]).to(x.dtype)


def coefficients(net: Precond, sigma: float) -> tuple[float, float, float, float]:
    values = net.coefficients(torch.full((1, 1, 1, 1), sigma))
    return tuple(float(value) for value in values)  # type: ignore[return-value]


def test_edm_coefficients() -> None:
    expected = (0.5, 0.5 / math.sqrt(2), math.sqrt(2), math.log(0.5) / 4)
    assert coefficients(EDMPrecond(Probe()), 0.5) == pytest.approx(expected)
    sharper = EDMPrecond(Probe(), sigma_data=1.0)
    assert coefficients(sharper, 2.0) == pytest.approx((1 / 5, 2 / math.sqrt(5), 1 / math.sqrt(5), math.log(2) / 4))


@pytest.mark.parametrize("sigma", [0.01, 0.3, 1.0, 70.0])
def test_edm_target_and_input_have_unit_variance(sigma: float) -> None:
    """Karras et al. 2022, Appendix B.6, for data of standard deviation sigma_data."""
    sd = 0.5
    c_skip, c_out, c_in, _ = coefficients(EDMPrecond(Probe(), sigma_data=sd), sigma)
    assert c_in**2 * (sd**2 + sigma**2) == pytest.approx(1)
    assert ((1 - c_skip) ** 2 * sd**2 + c_skip**2 * sigma**2) / c_out**2 == pytest.approx(1)


def test_vp_coefficients() -> None:
    net = VPPrecond(Probe())
    assert coefficients(net, 3.0)[:3] == pytest.approx((1, -3, 1 / math.sqrt(10)))
    t = (math.sqrt(0.01 + 2 * 19.9 * math.log(10)) - 0.1) / 19.9
    assert coefficients(net, 3.0)[3] == pytest.approx(999 * t)
    # float32 without log1p: the exact value would be 0.0399.
    assert coefficients(net, 0.002)[3] == pytest.approx(0.04033, abs=1e-5)
    assert net.sigma_min == 0.0009765625
    assert net.sigma_max == pytest.approx(152.167, abs=1e-3)


def test_ve_coefficients() -> None:
    net = VEPrecond(Probe())
    assert coefficients(net, 3.0) == pytest.approx((1, 3, 1, math.log(1.5)))
    assert (net.sigma_min, net.sigma_max) == (0.02, 100)


def test_iddpm_levels() -> None:
    net = iDDPMPrecond(Probe(out_channels=4))
    assert coefficients(net, 0.0)[3] == -1
    assert coefficients(net, 1e6)[3] == 999
    levels = net.u[[3, 500, 999]].double()
    assert net.nearest_level(levels.reshape(3, 1) * 1.0001).tolist() == [[3], [500], [999]]
    rounded = net.round_sigma(levels * 1.0001)
    assert rounded.dtype == torch.float64
    assert torch.equal(rounded, levels)
    assert net.round_sigma(torch.tensor(0.0)).shape == ()
    between = (net.u[5] + net.u[6]) / 2
    assert net.nearest_level(between) in (5, 6)
    assert next(iter(net.state_dict())) == "u"


def test_iddpm_uses_the_first_half_of_the_channels() -> None:
    net = iDDPMPrecond(Probe(out_channels=4))
    x = torch.zeros(1, 2, 4, 4)
    assert torch.equal(net(x, 2.0)[0, :, 0, 0], torch.tensor([-2.0, -4.0]))


def test_iddpm_limits_follow_a_loaded_table() -> None:
    net = iDDPMPrecond(Probe(out_channels=4))
    state = {key: value * 1.0005 if key == "u" else value for key, value in net.state_dict().items()}
    low = net.sigma_min
    net.load_state_dict(state)
    assert net.sigma_min == pytest.approx(low * 1.0005, rel=1e-6)


def test_denoiser_combines_input_and_network() -> None:
    net = EDMPrecond(Probe())
    x = torch.full((3, 2, 4, 4), 2.0, dtype=torch.float64)
    out = net(x, torch.tensor([0.5, 0.5, 0.5], dtype=torch.float64))
    assert out.dtype == torch.float32
    expected = 0.5 * 2 + 0.5 / math.sqrt(2) * torch.tensor([1.0, 2.0])
    assert torch.allclose(out[1, :, 2, 3], expected)


def test_one_sigma_or_one_for_each_image() -> None:
    probe = Probe()
    net = EDMPrecond(probe)
    x = torch.randn(3, 2, 4, 4)
    single = net(x, 0.7)
    assert probe.seen is not None
    assert probe.seen[1].shape == (1,)
    assert torch.equal(single, net(x, torch.full((3,), 0.7)))
    assert probe.seen[1].shape == (3,)


def test_labels() -> None:
    probe = Probe(label_dim=5)
    net = EDMPrecond(probe)
    x = torch.randn(2, 2, 4, 4)
    net(x, 1.0)
    assert probe.seen is not None
    assert torch.equal(probe.seen[2], torch.zeros(1, 5))  # type: ignore[arg-type]
    net(x, 1.0, torch.eye(5, dtype=torch.int64)[:2], augment_labels=torch.ones(2, 9))
    assert probe.seen[2] is not None
    assert probe.seen[2].dtype == torch.float32
    assert list(probe.extra) == ["augment_labels"]
    unconditional = Probe()
    EDMPrecond(unconditional)(x, 1.0, torch.eye(5)[:2])
    assert unconditional.seen is not None
    assert unconditional.seen[2] is None


def test_fp16_has_no_effect_on_a_cpu() -> None:
    probe = Probe()
    EDMPrecond(probe, use_fp16=True)(torch.randn(1, 2, 4, 4), 1.0)
    assert probe.seen is not None
    assert probe.seen[0].dtype == torch.float32


def test_network_must_keep_the_dtype() -> None:
    class Widening(Probe):
        def forward(self, x: Tensor, noise: Tensor, labels: Tensor | None = None, **extra: Tensor) -> Tensor:
            return super().forward(x, noise, labels).double()

    with pytest.raises(TypeError, match="float64"):
        EDMPrecond(Widening())(torch.randn(1, 2, 4, 4), 1.0)


@pytest.mark.parametrize("cls", [VPPrecond, VEPrecond, EDMPrecond, iDDPMPrecond])
def test_bfloat16_is_the_network_s_dtype_and_the_denoiser_s_stays_float32(cls: type[Precond]) -> None:
    probe = Probe(out_channels=4 if cls is iDDPMPrecond else 2)
    net = cls(probe, use_bf16=True)  # type: ignore[call-arg]
    denoised = net(torch.ones(3, 2, 4, 4), torch.tensor([0.5, 1.0, 2.0]))
    assert probe.seen is not None
    assert probe.seen[0].dtype == torch.bfloat16 and probe.seen[1].dtype == torch.float32
    assert denoised.dtype == torch.float32
    net(torch.ones(1, 2, 4, 4), 1.0, force_fp32=True)
    assert probe.seen[0].dtype == torch.float32


def test_float16_has_no_effect_on_a_cpu_and_excludes_bfloat16() -> None:
    probe = Probe()
    EDMPrecond(probe, use_fp16=True)(torch.ones(1, 2, 4, 4), 1.0)
    assert probe.seen is not None and probe.seen[0].dtype == torch.float32
    with pytest.raises(UsageError, match="exclude each other"):
        EDMPrecond(probe, use_fp16=True, use_bf16=True)
