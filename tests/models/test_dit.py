"""DiT: sizes of the papers, its tables by hand, and attention and initialisation as specified."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from repro.errors import UsageError
from repro.models.counting import cost
from repro.models.dit import PATCHES, SIZES, Attention, DiT, positions
from repro.models.dit_layers import LabelEmbedder, TimestepEmbedder, attend, layer_norm, split_heads, timestep_features

# (trainable, with pos_embed, GMACs of products alone), in the order of PATCHES; specification, section 2.3.
COUNTED: dict[str, list[tuple[int, int, float]]] = {
    "S": [(32865056, 32963360, 6.055674), (32920448, 32945024, 1.412579), (33142016, 33148160, 0.357974)],
    "B": [(130315808, 130512416, 23.005102), (130426496, 130475648, 5.565186), (130869248, 130881536, 1.417544)],
    "L": [(457840672, 458102816, 80.697623), (457988224, 458053760, 19.695665), (458578432, 458594816, 5.011407)],
    "XL": [(674834720, 675129632, 118.621422), (675000704, 675074432, 29.043671), (675664640, 675683072, 7.392412)],
}
PRINTED = {("S", 2): 6.07, ("B", 2): 23.02, ("L", 2): 80.75, ("XL", 2): 118.68, ("L", 4): 19.70, ("S", 4): 1.41}
"""GFLOPs as the U-DiT paper prints them for the networks that it trained (Tables 1 and 2)."""
SMALL: dict[str, Any] = {
    "img_resolution": 8,
    "label_dim": 5,
    "depth": 2,
    "num_heads": 2,
    "head_channels": 8,
}


def make(**changes: Any) -> DiT:
    torch.manual_seed(1)
    return DiT(**{**SMALL, **changes})


def randomise(net: torch.nn.Module) -> None:
    """Weights of order 1 everywhere: a fresh network is zero at its end."""
    torch.manual_seed(2)
    for parameter in net.parameters():
        parameter.data.normal_(0, 1 / math.sqrt(max(parameter[0].numel(), 4)) if parameter.ndim > 1 else 0.1)


def inputs(n: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(n, 4, 8, 8, generator=generator), torch.arange(n) * 300, torch.arange(n) % 6


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("index, patch", list(enumerate(PATCHES)))
def test_sizes_are_the_counted_ones(size: str, index: int, patch: int) -> None:
    trainable, stored, gmacs = COUNTED[size][index]
    found = cost(lambda: DiT(**SIZES[size]._asdict(), patch_size=patch))
    with torch.device("meta"):
        state = DiT(**SIZES[size]._asdict(), patch_size=patch).state_dict()
    assert (found.trainable, sum(value.numel() for value in state.values())) == (trainable, stored)
    assert found.inference == found.trainable
    assert found.products / 1e9 == pytest.approx(gmacs, abs=1e-6)
    if (size, patch) in PRINTED:
        assert round(found.traced / 1e9, 2) == PRINTED[size, patch]


def test_position_table_by_hand() -> None:
    table = positions(8, 3)
    assert table.dtype == torch.float64
    row, column = 2, 1
    rates = [1.0, 0.01]
    expected = [f(p * w) for p in (column, row) for f in (math.sin, math.cos) for w in rates]
    assert table[3 * row + column].tolist() == pytest.approx(expected, abs=1e-15)
    with pytest.raises(ValueError, match="divisible by 4, not 6"):
        positions(6, 3)


def test_time_features_by_hand() -> None:
    features = timestep_features(torch.tensor([3]), 5)
    rate = 10000**-0.5
    expected = [math.cos(3), math.cos(3 * rate), math.sin(3), math.sin(3 * rate), 0]
    assert features[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert timestep_features(torch.tensor([2.5])).shape == (1, 256)


def test_time_features_are_the_float32_ones_for_any_width() -> None:
    """Where half the width is no power of two, the order of the operations shows at large t."""
    exponents = np.float32(-math.log(10000)) * np.arange(48, dtype=np.float32) / np.float32(48)
    angles = 999 * torch.from_numpy(exponents).exp()
    torch.testing.assert_close(timestep_features(torch.tensor([999]), 96)[0, :48], angles.cos(), rtol=0, atol=1e-6)


def test_attention_is_the_textbooks() -> None:
    layer = Attention(12, 3)
    x = torch.randn(2, 5, 12)
    qkv = layer.qkv(x)
    heads = []
    for head in range(3):
        q, k, v = (qkv[..., 12 * part + 4 * head : 12 * part + 4 * head + 4] for part in range(3))
        heads.append((q @ k.transpose(1, 2) / 2).softmax(2) @ v)
    torch.testing.assert_close(layer(x), layer.proj(torch.cat(heads, 2)))
    q, k, v = split_heads(qkv, 3)
    assert attend(q, k, v).shape == (2, 5, 12)
    with pytest.raises(ValueError, match="12 channels cannot be split into 5 heads"):
        Attention(12, 5)


def test_norm_has_its_epsilon_in_the_root() -> None:
    x = torch.tensor([[1e-3, -1e-3]])
    torch.testing.assert_close(layer_norm(x), x / math.sqrt(2e-6))


def test_a_token_is_a_patch() -> None:
    """Row of the patch slowest, then column, then channel; tokens row by row."""
    net = make(patch_size=4, learn_sigma=False)
    tokens = torch.arange(4 * 64).float().reshape(1, 4, 64)
    image = net._unpatchify(tokens)
    assert image.shape == (1, 4, 8, 8)
    assert image[0, 3, 5, 2] == tokens[0, 2, (1 * 4 + 2) * 4 + 3]


def test_a_fresh_network_is_zero_and_its_blocks_change_nothing() -> None:
    net = make()
    assert torch.equal(net(*inputs()), torch.zeros(3, 8, 8, 8))
    h = torch.randn(2, 16, 16)
    assert torch.equal(net.blocks[0](h, torch.randn(2, 16)), h)


def test_initial_sizes() -> None:
    net = DiT(img_resolution=8, label_dim=500, depth=1, num_heads=4, head_channels=64)
    assert net.y_embedder is not None
    assert float(net.y_embedder.embedding_table.weight.detach().std()) == pytest.approx(0.02, rel=0.02)
    for layer in (net.t_embedder.mlp[0], net.t_embedder.mlp[2]):
        assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=0.02)
        assert not layer.bias.any()
    bound = math.sqrt(6 / (16 + 256))
    assert 0.97 * bound < float(net.x_embedder.proj.weight.detach().abs().max()) <= bound
    bound = math.sqrt(6 / (256 + 768))
    assert 0.97 * bound < float(net.blocks[0].attn.qkv.weight.detach().abs().max()) <= bound


def test_time_embedder_is_two_layers_with_silu() -> None:
    layer = TimestepEmbedder(6)
    t = torch.tensor([5, 900])
    first, _, second = layer.mlp
    torch.testing.assert_close(layer(t), second(torch.nn.functional.silu(first(timestep_features(t)))))


def test_labels_are_dropped_by_whoever_says_so() -> None:
    layer = LabelEmbedder(4, 3, 0.1).train()
    y = torch.tensor([0, 1, 2])
    null = layer(torch.tensor([4]))
    assert torch.equal(layer(y), layer.eval()(y)), "nothing is dropped without a draw"
    dropped = layer(y, torch.tensor([0, 1, 0]))
    assert torch.equal(dropped[1:2], null) and torch.equal(dropped[::2], layer(y)[::2])


@pytest.mark.parametrize("label", [-1, 6, 1000])
def test_a_label_outside_of_the_table_is_named(label: int) -> None:
    x, t, _ = inputs(1)
    with pytest.raises(UsageError, match=rf"label {label} is outside of the table of 6 rows, 0 to 5 \(5 is the null"):
        make()(x, t, torch.tensor([label]))


def test_without_dropout_there_is_no_null_class() -> None:
    layer = LabelEmbedder(4, 3, 0.0)
    with pytest.raises(UsageError, match="table of 4 rows, 0 to 3"):
        layer(torch.tensor([4]))
    with pytest.raises(UsageError, match="no null class"):
        layer(torch.tensor([1]), torch.tensor([True]))


def test_sizes_that_do_not_divide() -> None:
    with pytest.raises(UsageError, match="a latent of 9 pixels a side: it must be divisible by 2"):
        make(img_resolution=9)
    with pytest.raises(ValueError, match="takes 8 pixels a side"):
        make()(torch.zeros(1, 4, 16, 16), torch.zeros(1), torch.zeros(1, dtype=torch.int64))


def test_unconditional_networks_ignore_labels() -> None:
    net = make(label_dim=0)
    randomise(net)
    x, t, _ = inputs()
    assert net(x, t).abs().max() > 0
    assert not [key for key in net.state_dict() if key.startswith("y_")]


def test_half_precision_stays_near_single() -> None:
    net = make()
    randomise(net)
    x, t, y = inputs()
    single, half = net(x, t, y), net(x.bfloat16(), t, y)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), single, atol=0.05 * float(single.detach().std()), rtol=0.05)
