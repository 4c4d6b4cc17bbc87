"""U-DiT: the ladder's sizes, its attention and feed-forwards against plain formulas, fusing, and bad input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_dit import randomise
from torch import Tensor, nn

from repro.errors import UsageError
from repro.models import udit_layers as layers
from repro.models.counting import cost
from repro.models.udit import SIZES, StageDown, StageUp, UDiT, fused, is_fusible
from repro.models.udit_layers import ReparameterisedFeedForward, TokenAttention

VANILLA: dict[str, Any] = {"cosine_attention": False, "rope": False, "ffn": "basic"}
UNET: dict[str, Any] = {**VANILLA, "down_factor": 1, "down_kernel": None}
SMALL: dict[str, Any] = {
    "img_resolution": 16,
    "label_dim": 5,
    "depth": [1, 1, 1, 1, 1],
    "num_heads": 2,
    "head_channels": 8,
}
# name: (size, changes, parameters, fused parameters, GMACs as the papers' tracer counts them). All else is a row.
LADDER: dict[str, tuple[str, dict[str, Any], int | None, int | None, float]] = {
    "Slim, 3 heads": ("T", {**UNET, "num_heads": 3, "head_channels": 12}, None, None, 0.9199),
    "+ Re-param.": ("T", {}, 7_995_392, 5_432_192, 0.950106),
}


def make(**changes: Any) -> UDiT:
    torch.manual_seed(1)
    return UDiT(**{**SMALL, **changes})


def inputs(n: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(n, 4, 16, 16, generator=generator), torch.arange(n) * 300, torch.arange(n) % 6


@pytest.mark.parametrize("name", LADDER)
def test_sizes_of_the_ladder(name: str) -> None:
    """Parameters exactly, multiply-accumulates within 0.1 %; the tables' rows are counted with the tables."""
    size, changes, trainable, inference, gmacs = LADDER[name]
    found = cost(lambda: UDiT(**{**SIZES[size]._asdict(), **changes}))
    assert trainable in (None, found.trainable) and inference in (None, found.inference)
    assert found.traced / 1e9 == pytest.approx(gmacs, rel=1e-3)


@pytest.mark.parametrize("size, gmacs", [("S", 32.931517), ("B", 106.294088), ("L", 374.312387)])
def test_multiplications_at_64_pixels(size: str, gmacs: float) -> None:
    found = cost(lambda: UDiT(**SIZES[size]._asdict()), 64)
    assert found.products / 1e9 == pytest.approx(gmacs, abs=1e-6)


@pytest.mark.parametrize("size", "SBL")
def test_published_number_of_entries(size: str) -> None:
    with torch.device("meta"):
        assert len(UDiT(**SIZES[size]._asdict()).state_dict()) == 1043


def test_groups_are_strided() -> None:
    x = torch.arange(2 * 3 * 4 * 6).float().reshape(2, 3, 4, 6)
    tokens = layers.group_tokens(x, 2)
    assert tokens.shape == (2, 4, 6, 3)
    assert torch.equal(tokens[1, 2, 4], x[1, :, 3, 2]), "group 2: dy 1, dx 0; token 4: i 1, j 1"
    assert torch.equal(layers.ungroup_tokens(tokens, 2, 4, 6), x)


def test_stage_samplers_move_pixels_to_channels_and_back() -> None:
    down, up = StageDown(4), StageUp(4)
    x = torch.randn(1, 4, 6, 6)
    y, inner = down(x), down.body(x)
    assert y.shape == (1, 8, 3, 3)
    assert torch.equal(y[0, 4 * 1 + 2 * 1 + 0, 2, 1], inner[0, 1, 2 * 2 + 1, 2 * 1])
    z, inner = up(x), up.body(x)
    assert z.shape == (1, 2, 12, 12)
    assert torch.equal(z[0, 1, 5, 2], inner[0, 4 * 1 + 2 * 1 + 0, 2, 1])


def test_rotation_angles_by_hand() -> None:
    angles = layers.rotation_angles(8, 2, 3)
    assert angles.shape == (6, 4)
    assert angles[5].tolist() == pytest.approx([2, 1, 0.02, 0.01]), "column 2, row 1; pairs alternate"
    with pytest.raises(ValueError, match="divisible by 4, not 6"):
        layers.rotation_angles(6, 2, 2)


def test_rotation_turns_pairs_and_keeps_the_dtype() -> None:
    angle = torch.tensor([[math.pi / 2, 0.0]])
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    turned = layers.rotate(x, angle.cos(), angle.sin())
    torch.testing.assert_close(turned, torch.tensor([[-2.0, 1.0, 3.0, 4.0]]))
    assert layers.rotate(x.bfloat16(), angle.cos(), angle.sin()).dtype == torch.bfloat16


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("rope", [False, True])
def test_attention_within_groups(cosine: bool, rope: bool) -> None:
    """Every group and head by itself, from the formulas of section 3.3; the map is not square."""
    torch.manual_seed(0)
    attn = TokenAttention(16, 2, 2, 3, True, cosine, rope)
    if attn.logit_scale is not None:
        attn.logit_scale.data = torch.tensor([1.5, 9.0]).reshape(2, 1, 1)
    x = torch.randn(2, 16, 4, 8)
    assert attn.downsampler is not None
    down = x + F.conv2d(x, attn.downsampler.layer.weight, attn.downsampler.layer.bias, padding=1, groups=16)
    expected = torch.zeros(2, 16, 4, 8)
    for dy in range(2):
        for dx in range(2):
            tokens = down[:, :, dy::2, dx::2].flatten(2).transpose(1, 2)
            expected[:, :, dy::2, dx::2] = _heads(attn, tokens).transpose(1, 2).reshape(2, 16, 2, 4)
    torch.testing.assert_close(attn(x), F.conv2d(expected, attn.to_out.weight, attn.to_out.bias), rtol=1e-4, atol=1e-5)


def _heads(attn: TokenAttention, tokens: Tensor) -> Tensor:
    """Plain attention of one group's tokens (N, T, C), 2 x 4 of them."""
    qkv, found = attn.to_qkv(tokens), []
    for head in range(2):
        q, k, v = (qkv[..., 16 * part + 8 * head : 16 * part + 8 * head + 8] for part in range(3))
        if attn.rope:
            angles = layers.rotation_angles(8, 2, 4)
            q, k = (layers.rotate(z, angles.cos(), angles.sin()) for z in (q, k))
        scale = 8**-0.5
        if attn.logit_scale is not None:
            q, k = F.normalize(q, dim=2), F.normalize(k, dim=2)
            scale = math.exp(min(attn.logit_scale[head].item(), 4.6052))
        found.append((scale * q @ k.transpose(1, 2)).softmax(2) @ v)
    return torch.cat(found, 2)


def test_reparameterised_feed_forward_is_its_branches() -> None:
    torch.manual_seed(0)
    module = ReparameterisedFeedForward(6, 12)
    randomise(module)
    x = torch.randn(2, 6, 5, 7)
    a = F.gelu(module.project_in(x))
    expected = module.project_out(a + sum(branch(a) for branch in module.dwconv))
    torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-5)
    torch.autograd.backward(module(x).square().sum())
    ours = {name: p.grad for name, p in module.named_parameters()}
    module.zero_grad()
    torch.autograd.backward(expected.square().sum())
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-3, atol=1e-4 * float(parameter.grad.abs().max()))


def test_fusing_makes_a_copy_with_the_same_output() -> None:
    net = make().eval()
    randomise(net)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    copied, again = fused(net), fused(net)
    expected = net(*inputs())
    for other in (copied, again, fused(copied)):
        torch.testing.assert_close(other(*inputs()), expected, rtol=1e-4, atol=2e-6 * float(expected.abs().max()))
    assert is_fusible(net) and not is_fusible(copied)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert torch.equal(copied(*inputs()), again(*inputs())) and copied(*inputs()).any(), "a copy follows no change"
    assert not any(parameter.requires_grad for parameter in copied.parameters())


def test_weights_loaded_after_fusing_are_used() -> None:
    """The published code ignores them (specification, trap 11.1)."""
    net, other = make().eval(), make().eval()
    randomise(other)
    fused(net)
    net.load_state_dict(other.state_dict())
    torch.testing.assert_close(fused(net)(*inputs()), fused(other)(*inputs()))


def test_a_fused_checkpoint_cannot_be_trained_on() -> None:
    state = fused(make()).state_dict()
    with pytest.raises(UsageError, match="fused form, in which the branches .* sampled from .*, not trained on"):
        make().load_state_dict(state)
    make(ffn="depthwise").load_state_dict(state)  # to sample from


@pytest.mark.parametrize("changes", [VANILLA, UNET, {"ffn": "depthwise"}, {"down_factor": [2, 1, 2, 1, 2]}, {}])
def test_every_weight_learns(changes: dict[str, Any]) -> None:
    net = make(**changes).train()
    randomise(net)
    torch.autograd.backward(net(*inputs()).square().sum())
    silent = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_a_fresh_network_is_zero_and_its_blocks_change_nothing() -> None:
    net = make()
    assert torch.equal(net(*inputs()), torch.zeros(2, 8, 16, 16))
    h = torch.randn(2, 16, 8, 8)
    assert torch.equal(net.encoder_level_1[0](h, torch.randn(2, 16)), h)


def test_initial_sizes() -> None:
    net = make(label_dim=400, head_channels=32)
    attn = net.encoder_level_1[0].attn1
    assert torch.equal(attn.logit_scale, torch.full((2, 1, 1), math.log(10)))
    for weight, bound in (
        (attn.downsampler.layer.weight, math.sqrt(6 / (65 * 25))),
        (attn.to_qkv.weight, math.sqrt(6 / (64 + 192))),
        (net.x_embedder.proj.weight, math.sqrt(6 / (36 + 64))),
        (net.down1_2.body[0].weight, math.sqrt(6 / (9 * (64 + 32)))),
    ):
        assert 0.97 * bound < float(weight.detach().abs().max()) <= bound
    table = net.y_embedder_3.embedding_table.weight
    assert table.shape == (401, 256) and float(table.detach().std()) == pytest.approx(0.02, rel=0.02)


def test_three_embedders_drop_by_themselves() -> None:
    net = make()
    randomise(net)
    x, t, y = inputs(1)
    y[:] = 2
    null = torch.full_like(y, 5)
    kept = net(x, t, y)
    all_dropped = net(x, t, y, torch.ones(1, 3))
    torch.testing.assert_close(all_dropped, net(x, t, null))
    for index in range(3):
        one = net(x, t, y, F.one_hot(torch.tensor([index]), 3))
        assert not torch.equal(one, kept) and not torch.equal(one, all_dropped)


def test_decoder_level_1_is_conditioned_at_the_second_width() -> None:
    net = make()
    stages = {name: stage for name, stage in net.named_children() if isinstance(stage, nn.ModuleList)}
    widths = {name: stage[0].adaLN_modulation1[1].in_features for name, stage in stages.items()}
    assert list(widths.values()) == [16, 32, 64, 32, 32]
    assert net.final_layer.adaLN_modulation[1].in_features == 32


@pytest.mark.parametrize(
    "changes, side, factor", [({}, 20, 8), (UNET, 18, 4), ({"down_factor": [4, 4, 1, 2, 4]}, 12, 8)]
)
def test_sizes_that_the_factors_do_not_divide(changes: dict[str, Any], side: int, factor: int) -> None:
    message = rf"a latent of {side} pixels a side: it must be divisible by {factor} \(two halvings"
    with pytest.raises(UsageError, match=message):
        make(**{**changes, "img_resolution": side})
    with pytest.raises(UsageError, match=message):
        make(**changes)(torch.zeros(1, 4, 16, side), torch.zeros(1), torch.zeros(1, dtype=torch.int64))


def test_a_label_outside_of_the_table_is_named() -> None:
    x, t, _ = inputs(1)
    with pytest.raises(UsageError, match="label 6 is outside of the table of 6 rows"):
        make()(x, t, torch.tensor([6]))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"ffn": "rep"}, "unknown feed-forward 'rep'"),
        ({"depth": [1, 1, 1]}, "five stages, not 3 depths and 5 factors"),
        ({"head_channels": 6}, "RoPE2D needs heads of a width divisible by 4, not 6"),
    ],
)
def test_networks_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_half_precision_stays_near_single() -> None:
    net = make()
    randomise(net)
    x, t, y = inputs()
    single, half = net(x, t, y), net(x.bfloat16(), t, y)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), single, atol=0.1 * float(single.detach().std()), rtol=0.1)
