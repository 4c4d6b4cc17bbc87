"""Building blocks: hand-computed values and invariants."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from repro.models import layers
from repro.models.layers import (
    Conv2d,
    FourierEmbedding,
    GroupNorm,
    Init,
    Linear,
    PositionalEmbedding,
    UNetBlock,
    attention,
    dropout,
    resampling_kernel,
)


@pytest.mark.parametrize(
    ("mode", "std"),
    [
        ("xavier_uniform", math.sqrt(2 / (200 + 300))),
        ("xavier_normal", math.sqrt(2 / (200 + 300))),
        ("kaiming_uniform", math.sqrt(1 / 200)),
        ("kaiming_normal", math.sqrt(1 / 200)),
    ],
)
def test_initial_spread(mode: str, std: float) -> None:
    torch.manual_seed(0)
    layer = Linear(200, 300, init=Init(mode, weight=2.0, bias=3.0))
    assert layer.weight.std().item() == pytest.approx(2 * std, rel=0.02)
    assert layer.bias is not None
    assert layer.bias.std().item() == pytest.approx(3 * std, rel=0.15)
    if mode.endswith("uniform"):
        assert layer.weight.abs().max().item() <= 2 * std * math.sqrt(3)


def test_initial_bias_is_zero_and_unknown_modes_are_refused() -> None:
    layer = Conv2d(3, 5, 3)
    assert layer.bias is not None
    assert not layer.bias.any()
    with pytest.raises(ValueError, match="glorot"):
        Linear(2, 2, init=Init("glorot"))


def test_resampling_kernels() -> None:
    assert torch.equal(resampling_kernel([1, 1])[0, 0], torch.full((2, 2), 0.25))
    row = torch.tensor([1.0, 3, 3, 1]) / 8
    assert torch.equal(resampling_kernel([1, 3, 3, 1])[0, 0], torch.outer(row, row))


def test_box_filter_is_mean_and_doubling() -> None:
    x = torch.arange(32.0).reshape(1, 2, 4, 4)
    halved = Conv2d(2, 2, 0, down=True)(x)
    assert torch.equal(halved[0, 0], torch.tensor([[2.5, 4.5], [10.5, 12.5]]))
    doubled = Conv2d(2, 2, 0, up=True)(x)
    assert torch.equal(doubled, x.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_binomial_filter_up_spreads_an_impulse() -> None:
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 1, 2] = 1
    row = torch.tensor([0.25, 0.75, 0.75, 0.25])
    expected = torch.zeros(8, 8)
    expected[1:5, 3:7] = torch.outer(row, row)
    result = Conv2d(1, 1, 0, up=True, resample_filter=[1, 3, 3, 1])(x)
    assert torch.allclose(result[0, 0], expected)


def test_binomial_filter_darkens_borders() -> None:
    x = torch.ones(1, 1, 4, 4)
    result = Conv2d(1, 1, 0, down=True, resample_filter=[1, 3, 3, 1])(x)[0, 0]
    assert result[0, 0].item() == pytest.approx((7 / 8) ** 2)


def test_fused_down_equals_plain_order_inside_only() -> None:
    """The two orders commute for one-to-one channels and a shift-invariant kernel, away from the border."""
    torch.manual_seed(0)
    x = torch.randn(1, 1, 16, 16)
    fused = Conv2d(1, 1, 3, down=True, resample_filter=[1, 3, 3, 1], fused_resample=True)
    result = fused(x)
    pure = Conv2d(1, 1, 0, down=True, resample_filter=[1, 3, 3, 1])
    plain = Conv2d(1, 1, 3)
    plain.load_state_dict({"weight": fused.weight, "bias": fused.bias})
    reference = pure(plain(x))
    assert result.shape == (1, 1, 8, 8)
    assert torch.allclose(result[..., 1:-1, 1:-1], reference[..., 1:-1, 1:-1], atol=1e-6)
    assert not torch.allclose(result, reference, atol=1e-3)


def test_contradictory_resampling_is_refused() -> None:
    with pytest.raises(ValueError, match="not both"):
        Conv2d(1, 1, 3, up=True, down=True)
    with pytest.raises(ValueError, match="fused_resample"):
        Conv2d(1, 1, 3, up=True, fused_resample=True)


def test_group_counts() -> None:
    assert [GroupNorm(c).num_groups for c in (4, 16, 128, 256)] == [1, 4, 32, 32]
    with pytest.raises(ValueError, match="142 channels"):
        GroupNorm(142)
    with pytest.raises(ValueError, match="3 channels"):
        GroupNorm(3)


def test_positional_embedding_values() -> None:
    c = torch.tensor([0.0, 2.0])
    closed = PositionalEmbedding(4, endpoint=True)(c)
    expected = [math.cos(2), math.cos(2e-4), math.sin(2), math.sin(2e-4)]
    assert torch.allclose(closed, torch.tensor([[1.0, 1, 0, 0], expected]))
    opened = PositionalEmbedding(4)(c)
    assert opened[1, 3].item() == pytest.approx(math.sin(2 / 100))


def test_fourier_frequencies_are_a_buffer() -> None:
    torch.manual_seed(0)
    layer = FourierEmbedding(64)
    assert list(layer.state_dict()) == ["freqs"]
    assert not list(layer.parameters())
    assert layer.freqs.std().item() == pytest.approx(16, rel=0.3)
    angle = 2 * math.pi * layer.freqs * 0.3
    assert torch.allclose(layer(torch.tensor([0.3]))[0], torch.cat([angle.cos(), angle.sin()]), atol=1e-5)


def naive_attention(qkv: Tensor, heads: int) -> Tensor:
    """Loops over images, heads and pixels in float64."""
    n, c3, height, width = qkv.shape
    per_head = c3 // 3 // heads
    flat = qkv.double().reshape(n, c3, -1)
    out = torch.zeros(n, c3 // 3, height * width, dtype=torch.float64)
    for i in range(n):
        for head in range(heads):
            rows = flat[i, head * 3 * per_head : (head + 1) * 3 * per_head]
            q, k, v = rows[0::3], rows[1::3], rows[2::3]
            for pixel in range(height * width):
                weights = torch.softmax((q[:, pixel] @ k) / math.sqrt(per_head), dim=0)
                out[i, head * per_head : (head + 1) * per_head, pixel] = v @ weights
    return out.reshape(n, -1, height, width)


@pytest.mark.parametrize("heads", [1, 2])
def test_attention(heads: int) -> None:
    torch.manual_seed(heads)
    qkv = torch.randn(2, 24, 3, 2)
    assert torch.allclose(attention(qkv, heads).double(), naive_attention(qkv, heads), atol=1e-6)


def test_attention_softmax_is_float32_in_half_precision() -> None:
    torch.manual_seed(0)
    qkv = torch.randn(1, 12, 4, 4).bfloat16()
    result = attention(qkv, 1)
    assert result.dtype == torch.bfloat16
    assert torch.allclose(result.double(), naive_attention(qkv, 1), atol=0.03)


def test_block_without_residual_returns_scaled_input() -> None:
    """conv1 and proj zero: only the skip branches are left, scaled once for each of the two sums."""
    block = UNetBlock(8, 8, 4, num_heads=1, skip_scale=0.5, adaptive_scale=False, init_zero=Init(weight=0.0))
    x = torch.randn(2, 8, 4, 4)
    assert torch.allclose(block(x, torch.randn(2, 4)), x / 4)


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    block = UNetBlock(8, 8, 4, dropout=0.5, init_zero=Init())
    x, emb = torch.randn(2, 8, 4, 4), torch.randn(2, 4)
    assert not torch.equal(block(x, emb), block(x, emb))
    block.eval()
    assert torch.equal(block(x, emb), block(x, emb))


SIZES = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.integers(1, 2), st.integers(1, 2))


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, kernel=st.sampled_from([1, 3]), seed=st.integers(0, 2**31))
def test_matrix_products_are_the_convolutions_that_they_replace(
    sizes: tuple[int, int, int, int, int], kernel: int, seed: int
) -> None:
    """Values and all three gradients."""
    n, c_in, c_out, height, width = sizes
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    x, weight, bias = drawn(n, c_in, height, width), drawn(c_out, c_in, kernel, kernel), drawn(c_out)
    own = layers.pointwise if kernel == 1 else layers.tiny_convolution
    ours, theirs = own(x, weight, bias), F.conv2d(x, weight, bias, padding=kernel // 2)
    assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    direction = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad(ours, (x, weight, bias), direction),
        torch.autograd.grad(theirs, (x, weight, bias), direction),
        strict=True,
    ):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("resample_filter", [(1, 1), (1, 3, 3, 1)])
@pytest.mark.parametrize(
    ("kernel", "options"), [(0, {"up": True}), (3, {"down": True}), (3, {"down": True, "fused_resample": True})]
)
@pytest.mark.parametrize("size", [2, 8, 32])
def test_resampling_by_matrix_is_resampling_by_convolution(
    monkeypatch: pytest.MonkeyPatch, resample_filter: tuple[int, ...], kernel: int, options: dict[str, bool], size: int
) -> None:
    torch.manual_seed(0)
    layer = Conv2d(
        3, 4 if kernel else 3, kernel, resample_filter=resample_filter, init=Init(bias=1.0), **options
    ).double()
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    found = {}
    for limit in (0, 10**6):
        monkeypatch.setattr(layers, "MATRIX_PIXELS", limit)
        found[limit] = layer(x)
    assert torch.allclose(found[0], found[10**6], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("probability", [0.0, 0.13, 0.5, 1.0])
def test_dropout_zeroes_the_stated_share_and_keeps_the_mean(probability: float) -> None:
    torch.manual_seed(0)
    count = 1_000_003  # no multiple of the four decisions in a random word
    x = torch.ones(count)
    y = dropout(x, probability)
    dropped = float((y == 0).double().mean())
    assert abs(dropped - probability) <= 5 * math.sqrt(probability * (1 - probability) / count) + 1 / 65536
    if probability < 1:
        assert len(y.unique()) == (1 if probability == 0 else 2)
        assert float(y.max()) == pytest.approx(1 / (1 - probability), rel=1e-4)
    again = dropout(x, probability)
    assert probability in (0.0, 1.0) or not torch.equal(y, again)


def test_dropout_masks_are_independent_of_their_neighbours() -> None:
    """Four decisions share a random word: none may follow from another."""
    torch.manual_seed(0)
    words = (dropout(torch.ones(400_000), 0.3) == 0).double().reshape(-1, 4)
    correlation = torch.corrcoef(words.T) - torch.eye(4)
    assert correlation.abs().max() < 5 / math.sqrt(len(words))
    assert (words.mean(dim=0) - 0.3).abs().max() < 5 * math.sqrt(0.21 / len(words)) + 1 / 65536
