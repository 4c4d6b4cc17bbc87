"""DhariwalUNet: sizes, attention, initial values, inputs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from repro.models.adm import DhariwalUNet
from repro.models.layers import UNetBlock


@pytest.mark.parametrize(
    ("label_dim", "out_channels", "count"), [(1000, 3, 295_899_267), (1000, 6, 295_904_454), (0, 3, 295_131_267)]
)
def test_parameter_counts(label_dim: int, out_channels: int, count: int) -> None:
    """Trainable parameters of the ImageNet-64 networks."""
    with torch.device("meta"):
        net = DhariwalUNet(64, 3, out_channels, label_dim)
    assert sum(p.numel() for p in net.parameters()) == count
    heads = [(name[:3], m.num_heads) for name, m in net.named_modules() if isinstance(m, UNetBlock) and m.num_heads]
    assert Counter(part for part, _ in heads) == {"enc": 9, "dec": 13}
    assert {number for _, number in heads} == {6, 9, 12}


def small(**options: Any) -> DhariwalUNet:
    settings: dict[str, Any] = {"model_channels": 64, "channel_mult": (1, 2), "num_blocks": 1, "attn_resolutions": (4,)}
    return DhariwalUNet(8, 2, 3, **{**settings, **options})


def test_every_parameter_trains() -> None:
    torch.manual_seed(0)
    net = small(label_dim=3, augment_dim=2)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    out = net(torch.randn(2, 2, 8, 8), torch.randn(2), torch.eye(3)[:2], torch.randn(2, 2))
    assert out.shape == (2, 3, 8, 8)
    torch.autograd.backward(out.square().sum())
    assert not [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]


def test_fresh_network_is_exactly_zero() -> None:
    net = small(augment_dim=2)
    assert not net(torch.randn(2, 2, 8, 8), torch.randn(2)).any()
    assert net.map_augment is not None
    assert not net.map_augment.weight.any()


def test_initial_biases_are_drawn() -> None:
    torch.manual_seed(0)
    net = small()
    assert net.map_layer0.bias is not None
    assert 0 < net.map_layer0.bias.abs().max().item() <= 1 / 8  # 1 / sqrt(fan_in)


def test_attention_everywhere_in_the_decoder_level() -> None:
    net = small(attn_resolutions=(8,))
    names = [name for name, m in net.named_modules() if isinstance(m, UNetBlock) and m.num_heads]
    assert names == ["enc.8x8_block0", "dec.4x4_in0", "dec.8x8_block0", "dec.8x8_block1"]


def test_narrow_blocks_have_no_attention() -> None:
    net = small(model_channels=32, channel_mult=(1, 1))
    assert not any("qkv" in key for key in net.state_dict())


def test_heads_of_odd_widths() -> None:
    net = small(model_channels=96, channel_mult=(1,), attn_resolutions=(8,))
    block = net.get_submodule("enc.8x8_block0")
    assert isinstance(block, UNetBlock)
    assert block.num_heads == 1
    assert net(torch.randn(1, 2, 8, 8), torch.zeros(1)).shape == (1, 3, 8, 8)


def test_labels_are_required() -> None:
    with pytest.raises(ValueError, match="class_labels"):
        small(label_dim=3)(torch.randn(1, 2, 8, 8), torch.zeros(1))


def test_resampling_without_weights() -> None:
    keys = [key for key in small().state_dict() if key.startswith("enc.4x4_down.skip")]
    assert keys == ["enc.4x4_down.skip.resample_filter"]


def test_float16_keeps_its_dtype_and_float32_embeddings() -> None:
    torch.manual_seed(0)
    net = small().eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    kinds: list[torch.dtype] = []
    net.map_layer1.register_forward_hook(lambda _, args, out: kinds.append(out.dtype))
    x, c = torch.randn(2, 2, 8, 8), torch.randn(2)
    with torch.no_grad():
        out, exact = net(x.half(), c), net(x, c)
    assert out.dtype == torch.float16
    assert kinds == [torch.float32, torch.float32]
    assert torch.allclose(out.float(), exact, atol=0.02 * float(exact.abs().max()))


def test_heads_of_another_width() -> None:
    """What a smaller scale needs: heads shrink with the channels."""
    net = small(model_channels=8, channels_per_head=4)
    block = net.get_submodule("enc.4x4_block0")
    assert isinstance(block, UNetBlock)
    assert block.num_heads == 4


def test_limit_of_activations() -> None:
    torch.manual_seed(0)
    net = small(clip_act=0.5)
    seen: list[float] = []
    for module in net.modules():
        if isinstance(module, UNetBlock):
            module.register_forward_hook(lambda _, args, out: seen.append(float(out.abs().amax())))
    with torch.no_grad():
        net(torch.randn(2, 2, 8, 8), torch.randn(2))
    assert max(seen) == 0.5
