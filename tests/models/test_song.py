"""SongUNet: sizes, layout of options, behaviour of its inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from repro.models.layers import UNetBlock
from repro.models.song import SongUNet

NCSNPP: dict[str, Any] = {
    "embedding_type": "fourier",
    "channel_mult_noise": 2,
    "encoder_type": "residual",
    "resample_filter": (1, 3, 3, 1),
}
AB32, AB64, CF32, CF64 = (1, 2, 2, 2), (1, 1, 2, 2, 2), (2, 2, 2), (1, 2, 2, 2)


@pytest.mark.parametrize(
    ("ncsnpp", "resolution", "channel_mult", "label_dim", "augment_dim", "count"),
    [
        (False, 32, AB32, 0, 0, 61_804_419),
        (False, 32, AB32, 10, 0, 61_805_827),
        (True, 32, AB32, 0, 0, 62_758_787),
        (True, 32, AB32, 10, 0, 62_761_603),
        (False, 64, AB64, 0, 0, 66_715_267),
        (True, 64, AB64, 0, 0, 67_817_219),
        (False, 32, CF32, 0, 0, 55_732_739),
        (False, 32, CF32, 10, 0, 55_734_147),
        (True, 32, CF32, 0, 0, 56_395_523),
        (True, 32, CF32, 10, 0, 56_398_339),
        (False, 64, CF64, 0, 0, 61_804_419),
        (True, 64, CF64, 0, 0, 62_758_787),
        (False, 32, CF32, 0, 9, 55_733_891),
        (False, 32, CF32, 10, 9, 55_735_299),
        (True, 32, CF32, 0, 9, 56_397_827),
        (True, 32, CF32, 10, 9, 56_400_643),
        (False, 64, CF64, 0, 9, 61_805_571),
        (True, 64, CF64, 0, 9, 62_761_091),
    ],
)
def test_parameter_counts(
    ncsnpp: bool, resolution: int, channel_mult: tuple[int, ...], label_dim: int, augment_dim: int, count: int
) -> None:
    """Trainable parameters of the published networks (Karras et al. 2022, Table 2 configurations)."""
    with torch.device("meta"):
        net = SongUNet(
            resolution, 3, 3, label_dim, augment_dim, channel_mult=channel_mult, **(NCSNPP if ncsnpp else {})
        )
    assert sum(p.numel() for p in net.parameters()) == count
    attentive = [m for m in net.modules() if isinstance(m, UNetBlock) and m.num_heads]
    assert len(attentive) == 6
    assert {m.num_heads for m in attentive} == {1}


def small(**options: Any) -> SongUNet:
    settings: dict[str, Any] = {"model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1, "attn_resolutions": (4,)}
    return SongUNet(8, 2, 3, **{**settings, **options})


@pytest.mark.parametrize("embedding", ["positional", "fourier"])
@pytest.mark.parametrize("encoder", ["standard", "skip", "residual"])
@pytest.mark.parametrize("decoder", ["standard", "skip"])
@pytest.mark.parametrize("resample_filter", [(1, 1), (1, 3, 3, 1)])
def test_every_option_trains(embedding: str, encoder: str, decoder: str, resample_filter: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    net = small(
        embedding_type=embedding, encoder_type=encoder, decoder_type=decoder, resample_filter=resample_filter,
        label_dim=3, augment_dim=2,
    )  # fmt: skip
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    out = net(torch.randn(2, 2, 8, 8), torch.randn(2), torch.eye(3)[:2], torch.randn(2, 2))
    assert out.shape == (2, 3, 8, 8)
    torch.autograd.backward(out.square().sum())
    without = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


def test_first_convolution_ignores_channel_mult() -> None:
    state = small(channel_mult=(2, 1)).state_dict()
    assert state["enc.8x8_conv.weight"].shape == (8, 2, 3, 3)
    assert state["enc.8x8_block0.conv0.weight"].shape == (16, 8, 3, 3)


def test_attention_placement() -> None:
    net = small(num_blocks=2, attn_resolutions=(8,))
    names = [name for name, m in net.named_modules() if isinstance(m, UNetBlock) and m.num_heads]
    assert names == ["enc.8x8_block0", "enc.8x8_block1", "dec.4x4_in0", "dec.8x8_block2"]


def test_fresh_network_is_almost_zero() -> None:
    torch.manual_seed(0)
    out = small()(torch.randn(2, 2, 8, 8), torch.randn(2))
    assert 0 < out.abs().max().item() < 1e-3


def test_one_noise_level_serves_the_batch() -> None:
    torch.manual_seed(0)
    net = small(label_dim=3).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    x, labels = torch.randn(3, 2, 8, 8), torch.zeros(1, 3)
    single = net(x, torch.tensor([0.4]), labels)
    assert torch.allclose(single, net(x, torch.full((3,), 0.4), labels.expand(3, 3)), atol=1e-5)


def test_absent_augment_labels_are_zeros() -> None:
    torch.manual_seed(0)
    net = small(augment_dim=4).eval()
    x, c = torch.randn(2, 2, 8, 8), torch.randn(2)
    assert torch.equal(net(x, c), net(x, c, augment_labels=torch.zeros(2, 4)))


@pytest.mark.parametrize("option", ["embedding_type", "encoder_type", "decoder_type"])
def test_unknown_options_are_named(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} must be one of .*'nonsense'"):
        small(**{option: "nonsense"})


def test_labels_are_required() -> None:
    with pytest.raises(ValueError, match="class_labels"):
        small(label_dim=3)(torch.randn(1, 2, 8, 8), torch.zeros(1))


def test_state_dict_layout() -> None:
    """First keys of an NCSN++ network and order within a resampling block (published key order)."""
    keys = list(small(label_dim=2, augment_dim=2, **NCSNPP).state_dict())
    assert keys[:9] == [
        "map_noise.freqs", "map_label.weight", "map_label.bias", "map_augment.weight",
        "map_layer0.weight", "map_layer0.bias", "map_layer1.weight", "map_layer1.bias", "enc.8x8_conv.weight",
    ]  # fmt: skip
    block = [key.removeprefix("enc.4x4_down.") for key in keys if key.startswith("enc.4x4_down.")]
    assert block == [
        "norm0.weight", "norm0.bias", "conv0.weight", "conv0.bias", "conv0.resample_filter", "affine.weight",
        "affine.bias", "norm1.weight", "norm1.bias", "conv1.weight", "conv1.bias",
        "skip.weight", "skip.bias", "skip.resample_filter",
    ]  # fmt: skip
    assert keys[-4:] == [f"dec.8x8_aux_{k}" for k in ("norm.weight", "norm.bias", "conv.weight", "conv.bias")]


def test_float16_keeps_its_dtype_and_float32_embeddings() -> None:
    torch.manual_seed(0)
    net = small(**NCSNPP).eval()
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
