"""The networks of EDM2: primitives by hand, the ladder C to G step by step, parameter counts of every row and size."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from repro.diffusion.edm2 import EDM2Precond
from repro.models import edm2_layers as layers
from repro.models.adm import DhariwalUNet
from repro.models.edm2 import Block, BlockOptions, EDM2UNet, GroupNormBlock, PlainGroupNorm
from repro.models.edm2_layers import MPConv, MPFourier

PLAIN_FUNCTIONS: dict[str, Any] = {
    "mp_silu": False,
    "mp_fourier": False,
    "learned_gains": False,
    "label_balance": None,
    "concat_balance": None,
    "res_balance": None,
    "attn_balance": None,
}
"""Configuration F: what G replaces by magnitude-preserving functions."""
ROWS: dict[str, dict[str, Any]] = {
    "c": {**PLAIN_FUNCTIONS, "weights": "plain", "group_norm": True},
    "d": {**PLAIN_FUNCTIONS, "weights": "normalized", "group_norm": True},
    "e": {**PLAIN_FUNCTIONS, "weights": "forced", "group_norm": True},
    "f": PLAIN_FUNCTIONS,
    "g": {},
}
SMALL: dict[str, Any] = {
    "img_resolution": 8,
    "img_channels": 2,
    "label_dim": 5,
    "model_channels": 16,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
    "channels_per_head": 16,
}


def make(row: str = "g", **changes: Any) -> EDM2UNet:
    torch.manual_seed(1)
    return EDM2UNet(**{**SMALL, **ROWS[row], **changes})


def inputs(n: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(n, 2, 8, 8, generator=generator)
    return x, torch.randn(n, generator=generator), F.one_hot(torch.arange(n) % 5, 5).float()


@pytest.mark.parametrize(
    "row, count",
    [("a", 295902724), ("b", 291757828), ("c", 277816512), ("d", 277816512), ("e", 277816512), ("f", 280212672),
     ("g", 280212709)],
)  # fmt: skip
def test_parameters_of_each_row_at_full_size(row: str, count: int) -> None:
    """Section 11 of the specification; the head of the loss is counted by itself: 129 in B, 128 after."""
    with torch.device("meta"):
        if row in "ab":
            net: nn.Module = DhariwalUNet(64, 4, 4, 1000, attn_resolutions=[32, 16, 8] if row == "a" else [16, 8])
        else:
            net = EDM2UNet(64, 4, 1000, **ROWS[row])
        head = sum(p.numel() for p in EDM2Precond(net).parameters()) - sum(p.numel() for p in net.parameters())
    assert sum(p.numel() for p in net.parameters()) == count
    assert head == (129 if row in "ab" else 128)


@pytest.mark.parametrize(
    "channels, millions",
    [(128, 124.7), (192, 280.2), (256, 497.8), (320, 777.5), (384, 1119.3), (448, 1523.2)],
)
def test_parameters_of_each_size_are_the_papers(channels: int, millions: float) -> None:
    for image_channels in (3, 4):
        with torch.device("meta"):
            net = EDM2Precond(EDM2UNet(64, image_channels, 1000, model_channels=channels))
        assert round(sum(p.numel() for p in net.parameters()) / 1e6, 1) == millions


def test_fifteen_attention_layers_and_the_published_number_of_entries() -> None:
    with torch.device("meta"):
        net, unconditional = EDM2Precond(EDM2UNet(64, 4, 1000)), EDM2Precond(EDM2UNet(64, 4))
    keys = list(net.state_dict())
    assert sum(key.endswith("attn_proj.weight") for key in keys) == 15
    assert (len(keys), len(unconditional.state_dict())) == (203, 202)
    assert net.state_dict()["unet.dec.16x16_block2.attn_qkv.weight"].shape == (1728, 576, 1, 1)


@pytest.mark.parametrize("row, gmac", [("c", 99.78), ("d", 99.78), ("e", 99.78), ("f", 100.80), ("g", 100.80)])
def test_multiplications_of_each_row(row: str, gmac: float) -> None:
    """Convolutions and attention of one evaluation (specification, section 11), counted from the networks."""
    with torch.device("meta"):
        net = EDM2UNet(64, 4, 1000, **ROWS[row]).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 4, 64, 64), torch.empty(1), torch.empty(1, 1000))
    counts = {str(name): value for name, value in counter.get_flop_counts()["Global"].items()}
    assert (counts["aten.convolution"] + counts["aten.bmm"]) / 2e9 == pytest.approx(gmac, abs=0.01)


@pytest.mark.parametrize("row", ROWS)
def test_half_precision_stays_near_single(row: str) -> None:
    """Activations are float16 from end to end; embedding and weights stay float32 (specification, section 4)."""
    net = make(row).train()
    for name, parameter in net.named_parameters():
        if name.endswith("gain"):
            parameter.data.fill_(0.5)
    x, noise, labels = inputs()
    single, half = net(x, noise, labels), net(x.half(), noise, labels)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), single, atol=0.01 * float(single.detach().std()), rtol=0.02)
    torch.autograd.backward(half.float().square().sum())
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in net.parameters())


def test_large_activations_in_half_precision_have_a_norm() -> None:
    """Squares of 256, the limit of activations, are beyond float16."""
    x = torch.full((1, 4, 1, 1), 256.0, dtype=torch.float16)
    torch.testing.assert_close(layers.pixel_norm(x), torch.ones_like(x))


def test_norm_is_rms_plus_eps_outside_the_root() -> None:
    x = torch.tensor([[3.0, 4.0, 0.0, 0.0]])
    assert torch.allclose(layers.normalize(x), x / (2.5 + 1e-4))
    assert torch.equal(layers.normalize(torch.zeros(2, 3)), torch.zeros(2, 3))


@pytest.mark.parametrize("dim", [[1, 2, 3], [1], [2, 3], [2]])
@pytest.mark.parametrize("size", [1.0, 1e-4])  # at 1e-4 eps is as large as the rms
def test_gradient_of_the_norm(dim: list[int], size: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 2).mul(size).requires_grad_()
    cotangent = torch.randn(2, 3, 4, 2)
    torch.autograd.backward((layers.normalize(x, dim) * cotangent).sum())
    y = x.detach().clone().requires_grad_()
    torch.autograd.backward((y / (y.square().mean(dim, keepdim=True).sqrt() + 1e-4) * cotangent).sum())
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-6 / size)


def test_gradient_of_a_zero_vector_is_finite() -> None:
    x = torch.zeros(2, 3, requires_grad=True)
    torch.autograd.backward(layers.normalize(x).sum())
    assert x.grad is not None and torch.equal(x.grad, torch.full((2, 3), 1e4))


@pytest.mark.parametrize("kernel", [0, 1, 3])
def test_convolution_is_the_two_step_normalisation_of_the_paper(kernel: int) -> None:
    """Forced step and use, written out with automatic differentiation."""
    torch.manual_seed(0)
    layer = MPConv(6, 4, kernel).train()
    layer.weight.data.mul_(0.01)  # small rows: eps is felt
    x = torch.randn(3, 6, *([5, 5] if kernel else []))
    stored = _normalized(layer.weight.detach()).requires_grad_()
    used = _normalized(stored) * (0.7 / math.sqrt(stored[0].numel()))
    expected = F.conv2d(x, used, padding=kernel // 2) if kernel else F.linear(x, used)
    y = layer(x, 0.7)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(layer.weight.detach(), stored.detach())
    cotangent = torch.randn_like(y)
    torch.autograd.backward((y * cotangent).sum())
    torch.autograd.backward((expected * cotangent).sum())
    torch.testing.assert_close(layer.weight.grad, stored.grad, rtol=1e-4, atol=1e-5)


def _normalized(weight: Tensor) -> Tensor:
    rms = weight.flatten(1).square().mean(1).sqrt()
    return weight / (rms + 1e-4).reshape(-1, *[1] * (weight.ndim - 1))


@pytest.mark.parametrize("rule, changes", [("forced", True), ("normalized", False), ("plain", False)])
def test_only_forced_weights_are_overwritten_and_only_in_training(rule: Any, changes: bool) -> None:
    layer = MPConv(6, 4, weights=rule)
    layer.weight.data.mul_(3)
    before = layer.weight.detach().clone()
    layer.eval()(torch.ones(1, 6))
    assert torch.equal(layer.weight, before)
    layer.train()(torch.ones(1, 6))
    assert torch.equal(layer.weight, before) != changes


def test_forced_weights_change_in_place_where_they_are_views() -> None:
    """The loop holds all weights as views of one vector."""
    layer = MPConv(6, 4)
    vector = layer.weight.detach().reshape(-1).clone().mul_(5)
    layer.weight.data = vector.view(4, 6)
    layer.train()(torch.ones(1, 6))
    torch.testing.assert_close(vector.view(4, 6).square().mean(1), torch.ones(4), atol=1e-3, rtol=0)


def test_forced_weights_change_in_place_where_channels_are_last() -> None:
    layer = MPConv(6, 4, 3)
    layer.weight.data = layer.weight.data.mul(5).to(memory_format=torch.channels_last)
    layer.train()(torch.ones(1, 6, 2, 2)).sum().backward()
    torch.testing.assert_close(layer.weight.square().mean((1, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)


def test_plain_weights_start_uniform() -> None:
    weight = MPConv(50, 200, 3, weights="plain").weight
    bound = 1 / math.sqrt(450)
    assert 0.98 * bound < weight.max() <= bound and -bound <= weight.min() < -0.98 * bound


def test_unknown_weight_rule() -> None:
    with pytest.raises(ValueError, match="weight rule 'norm'"):
        MPConv(3, 3, weights="norm")  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["up", "down"])
@pytest.mark.parametrize("size", [(6, 8), (5, 3)])
def test_two_equal_taps_resample_as_the_filter_does(mode: Any, size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    with_zeros = (0, 2, 2, 0)  # the same filter, by the general path
    torch.testing.assert_close(layers.resample(x, (1, 1), mode), layers.resample(x, with_zeros, mode))


def test_magnitudes_are_preserved() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(4, 32, 16, 16), torch.randn(4, 96, 16, 16)
    assert float(layers.mp_silu(a).square().mean()) == pytest.approx(1, abs=0.02)
    assert float(layers.mp_sum(a, b[:, :32], 0.3).square().mean()) == pytest.approx(1, abs=0.02)
    y = layers.mp_cat(a, b, t=0.5)
    assert float(y.square().mean()) == pytest.approx(1, abs=0.02)
    parts = float(y[:, :32].square().sum()), float(y[:, 32:].square().sum())
    assert parts[0] == pytest.approx(parts[1], rel=0.02), "both contribute alike whatever their channels"
    fourier = MPFourier(512)(torch.randn(64))
    assert float(fourier.square().mean()) == pytest.approx(1, abs=0.02)


def test_group_norm_by_hand() -> None:
    x = torch.arange(1.0, 17.0).reshape(1, 8, 2, 1)  # two groups of four channels
    y = PlainGroupNorm(8)(x).reshape(2, 8)
    for group, row in zip(x.reshape(2, 8), y, strict=True):
        torch.testing.assert_close(row, group / (group.square().mean().sqrt() + 1e-4))
    with pytest.raises(ValueError, match="3 channels"):
        PlainGroupNorm(3)


def test_heads_that_do_not_divide_the_channels() -> None:
    with pytest.raises(ValueError, match="70 channels cannot be split into 3 heads"):
        Block(40, 70, decoder=True, attention=True, options=BlockOptions(8, channels_per_head=20))


def test_no_head_no_attention() -> None:
    block = Block(8, 8, decoder=True, attention=True, options=BlockOptions(8))
    assert block.num_heads == 0 and not hasattr(block, "attn_qkv")


@pytest.mark.parametrize("row", ROWS)
def test_every_row_trains(row: str) -> None:
    net = make(row, dropout=0.1).train()
    if row == "g":
        for name, parameter in net.named_parameters():
            if name.endswith("gain"):
                parameter.data.fill_(0.5)
    torch.autograd.backward(net(*inputs()).square().sum())
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_g_starts_at_zero_and_d_does_not() -> None:
    assert not make("g")(*inputs()).any()
    assert make("d")(*inputs()).any()


def test_d_is_c_with_normalised_weights() -> None:
    """C's network with D's weights scaled by hand gives what D gives."""
    c, d = make("c").eval(), make("d").eval()
    state = {}
    for name, value in d.state_dict().items():
        weights = name.endswith("weight")
        state[name] = _normalized(value) / math.sqrt(value[0].numel()) if weights else value
    c.load_state_dict(state)
    torch.testing.assert_close(c(*inputs()), d(*inputs()), rtol=1e-4, atol=1e-5)


def test_e_is_d_but_for_the_stored_weights() -> None:
    d, e = make("d").train(), make("e").train()
    e.load_state_dict(d.state_dict())
    torch.testing.assert_close(e(*inputs()), d(*inputs()), rtol=1e-3, atol=1e-4)
    for name, stored in e.named_parameters():
        torch.testing.assert_close(stored, _normalized(dict(d.named_parameters())[name]), msg=name)


def test_f_is_e_without_norms() -> None:
    """Parameters that both have agree in shape, but for the first convolutions of encoder blocks that widen."""
    e, f = make("e").state_dict(), make("f").state_dict()
    assert set(e) - set(f) == {"emb_second.weight"} and not set(f) - set(e)
    changed = {name for name in f if f[name].shape != e[name].shape}
    assert changed == {"enc.4x4_block0.conv_res0.weight"}


def _one_at_a_time() -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    settings = dict(PLAIN_FUNCTIONS)
    defaults = {"label_balance": 0.5, "concat_balance": 0.5, "res_balance": 0.3, "attn_balance": 0.3}
    for name in PLAIN_FUNCTIONS:
        settings = {**settings, name: defaults.get(name, True)}
        steps.append(settings)
    return steps


def test_f_with_the_fixed_functions_of_g_one_by_one_reaches_g() -> None:
    """Each changes the output; with all of them, and gains of 1, F's weights give what G gives."""
    x = inputs()
    f, g = make("f").eval(), make("g").eval()
    outputs = [f(*x)]
    for settings in _one_at_a_time():
        net = make("f", **settings).eval()
        gains = {name: torch.ones([]) for name, _ in net.named_parameters() if name.endswith("gain")}
        net.load_state_dict({**f.state_dict(), **gains})
        outputs.append(net(*x))
        same = "learned_gains" == list(settings)[len(outputs) - 2]
        assert torch.equal(outputs[-1], outputs[-2]) == same, list(settings)[len(outputs) - 2]
    g.load_state_dict({**f.state_dict(), **gains})
    assert torch.equal(g(*x), outputs[-1])


def test_block_of_f_by_hand() -> None:
    torch.manual_seed(0)
    plain = {"res_balance": None, "attn_balance": None, "mp_silu": False, "learned_gains": False}
    options = BlockOptions(8, channels_per_head=4, weights="plain", **plain)  # type: ignore[arg-type]
    x, emb = torch.randn(2, 6, 4, 4), torch.randn(2, 8)
    encoder = Block(6, 8, decoder=False, mode="down", options=options).eval()
    main = layers.pixel_norm(F.conv2d(F.avg_pool2d(x, 2), _weight(encoder.conv_skip)))
    torch.testing.assert_close(encoder(x, emb), main + _residual(encoder, main, emb))
    decoder = Block(6, 8, decoder=True, mode="up", options=options).eval()
    main = F.interpolate(x, scale_factor=2.0)
    expected = F.conv2d(main, _weight(decoder.conv_skip)) + _residual(decoder, main, emb)
    torch.testing.assert_close(decoder(x, emb), expected)


def _weight(layer: Any) -> Tensor:
    return layer.weight


def _residual(block: Block, x: Tensor, emb: Tensor) -> Tensor:
    y = F.conv2d(F.silu(x), block.conv_res0.weight, padding=1)
    y = F.silu(y * (F.linear(emb, block.emb_linear.weight) + 1)[:, :, None, None])
    return F.conv2d(y, block.conv_res1.weight, padding=1)


def test_block_of_c_by_hand() -> None:
    torch.manual_seed(0)
    plain = {"res_balance": None, "attn_balance": None, "mp_silu": False, "learned_gains": False}
    options = BlockOptions(8, channels_per_head=4, weights="plain", **plain)  # type: ignore[arg-type]
    x, emb = torch.randn(2, 8, 4, 4), torch.randn(2, 8)
    block = GroupNormBlock(8, 12, decoder=False, mode="down", attention=True, options=options).eval()
    y = F.conv2d(F.avg_pool2d(F.silu(PlainGroupNorm(8)(x)), 2), block.conv_res0.weight, padding=1)
    y = PlainGroupNorm(12)(y) * (F.linear(emb, block.emb_linear.weight) + 1)[:, :, None, None]
    main = F.conv2d(F.avg_pool2d(x, 2), _weight(block.conv_skip))
    main = main + F.conv2d(F.silu(y), block.conv_res1.weight, padding=1)
    heads = F.conv2d(main, block.attn_qkv.weight).reshape(2, 3, 4, 3, 4)  # N, head, feature, qkv, pixel
    q, k, v = (heads / (heads.square().mean(2, keepdim=True).sqrt() + 1e-4)).unbind(3)
    shares = torch.einsum("nhcq,nhck->nhqk", q, k / 2).softmax(3)
    attended = torch.einsum("nhqk,nhck->nhcq", shares, v).reshape(2, 12, 2, 2)
    torch.testing.assert_close(block(x, emb), main + F.conv2d(attended, block.attn_proj.weight), rtol=1e-4, atol=1e-5)


def test_a_wide_network_in_another_memory_format_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    net = make("g").eval()
    for name, parameter in net.named_parameters():
        if name.endswith("gain"):
            parameter.data.fill_(0.7)
    narrow = net(*inputs())
    monkeypatch.setattr("repro.models.edm2.CHANNELS_LAST_BELOW", 0)
    torch.testing.assert_close(net(*inputs()), narrow, rtol=1e-4, atol=1e-5)


def test_labels_are_needed_where_there_are_classes() -> None:
    with pytest.raises(ValueError, match="5 classes"):
        make()(*inputs()[:2])


def test_clipped_activations() -> None:
    block = Block(4, 4, decoder=True, options=BlockOptions(8, clip_act=0.5)).eval()
    y = block(10 * torch.randn(2, 4, 4, 4), torch.randn(2, 8))
    assert y.abs().amax().item() == 0.5
