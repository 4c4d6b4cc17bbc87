"""U-DiT: a U-Net of transformer blocks with down-sampled tokens (Tian et al. 2024, arXiv 2405.02730)."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repro.models.dit_layers import (
    ZERO,
    Convolution,
    LabelEmbedder,
    PatchEmbedding,
    TimestepEmbedder,
    check_counts,
    check_divisible,
    layer_norm,
    modulate,
    modulation_head,
)
from repro.models.skips import SkipScaling
from repro.models.udit_layers import FeedForwardKind, ReparameterisedFeedForward, TokenAttention, feed_forward

Module = TypeVar("Module", bound=nn.Module)


class Size(NamedTuple):
    """Blocks of each stage, heads and channels a head at the first level (Table 8 of the paper; T is inferred)."""

    depth: tuple[int, ...]
    num_heads: int
    head_channels: int
    mlp_ratio: float


SIZES = {
    "T": Size((1, 1, 2, 1, 1), 2, 24, 4),
    "S": Size((2, 5, 8, 5, 2), 4, 24, 2),
    "B": Size((2, 5, 8, 5, 2), 8, 24, 2),
    "L": Size((2, 5, 8, 5, 2), 16, 24, 2),
}
LEVELS = (0, 1, 2, 1, 0)
"""How often the resolution is halved in each of the five stages."""


@dataclasses.dataclass(frozen=True)
class BlockOptions:
    """What all blocks of a network share; see `UDiT`."""

    num_heads: int
    mlp_ratio: float = 2.0
    down_kernel: int | None = 5
    down_shortcut: bool = True
    cosine: bool = True
    rope: bool = True
    ffn: FeedForwardKind = "reparameterised"


class UDiTBlock(nn.Module):
    """Two transformer layers: twice attention and feed-forward, each modulated and gated by the condition.

    x: (N, width, H, W), c: (N, width) -> (N, width, H, W). factor: token down-sampling of the attention.
    """

    def __init__(self, width: int, factor: int, options: BlockOptions) -> None:
        super().__init__()
        o = options
        hidden = int(width * o.mlp_ratio)

        def attention() -> TokenAttention:
            return TokenAttention(width, o.num_heads, factor, o.down_kernel, o.down_shortcut, o.cosine, o.rope)

        self.attn1 = attention()
        self.mlp1 = feed_forward(o.ffn, width, hidden)
        self.adaLN_modulation1 = modulation_head(width, 6)
        self.attn2 = attention()
        self.mlp2 = feed_forward(o.ffn, width, hidden)
        self.adaLN_modulation2 = modulation_head(width, 6)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        x = _layer(x, self.adaLN_modulation1(c), self.attn1, self.mlp1)
        return _layer(x, self.adaLN_modulation2(c), self.attn2, self.mlp2)


def _layer(x: Tensor, modulation: Tensor, attn: nn.Module, mlp: nn.Module) -> Tensor:
    """One transformer layer. x: (N, C, H, W); modulation: (N, 6 C)."""
    parts = modulation.to(x.dtype)[:, :, None, None].chunk(6, dim=1)
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = parts
    x = torch.addcmul(x, gate, attn(modulate(pixel_norm(x), shift, scale)))
    return torch.addcmul(x, gate_mlp, mlp(modulate(pixel_norm(x), shift_mlp, scale_mlp)))


def pixel_norm(x: Tensor) -> Tensor:
    """Layer norm over the channels of each pixel. x: (N, C, H, W)."""
    return layer_norm(x.movedim(1, -1)).movedim(-1, 1)


class StageDown(nn.Module):
    """3x3 convolution to half the channels, then 2x2 pixels to channels. (N, C, H, W) -> (N, 2 C, H / 2, W / 2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(Convolution(width, width // 2, 3, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(self.body(x), 2)


class StageUp(nn.Module):
    """3x3 convolution to twice the channels, then channels to 2x2 pixels. (N, C, H, W) -> (N, C / 2, 2 H, 2 W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(Convolution(width, 2 * width, 3, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.body(x), 2)


class FinalLayer(nn.Module):
    """Modulated norm and a 3x3 convolution. x: (N, width, H, W), c: (N, width) -> (N, out_channels, H, W)."""

    def __init__(self, width: int, out_channels: int) -> None:
        super().__init__()
        self.out_proj = Convolution(width, out_channels, 3, init=ZERO)
        self.adaLN_modulation = modulation_head(width, 2)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).to(x.dtype)[:, :, None, None].chunk(2, dim=1)
        y: Tensor = self.out_proj(modulate(pixel_norm(x), shift, scale))
        return y


class UDiT(nn.Module):
    """The network; the defaults are U-DiT-S. Other sizes: `UDiT(**SIZES["L"]._asdict())`.

    The number of heads is the same in every stage, so that their width grows with the channels.

    Args:
        img_resolution: pixels of a side of the latents; the halvings and the token down-sampling must divide it.
        in_channels: channels of the latents.
        label_dim: classes; 0 for an unconditional network.
        depth: blocks of the five stages (encoder 1 and 2, latent, decoder 2 and 1); each is two transformer layers.
        num_heads, head_channels: attention heads and their width at the first level, which is the product wide.
        mlp_ratio: hidden width of the feed-forwards over the stage's.
        down_factor: token down-sampling, one number or one a stage; 1 for full attention (DiT-UNet).
        down_kernel: of the depthwise convolution before it; None for the plain pixel shuffle.
        down_shortcut: add the map to what that convolution gives.
        cosine_attention, rope: see `TokenAttention`.
        ffn: kind of feed-forward.
        class_dropout: probability with which training drops a label, drawn anew for each of the three embedders; 0 also
            leaves the null class out of the tables.
        learn_sigma: twice as many output channels, the second half for the variance.
        skip_scaling: scaling of the two long skips; None for none.
    """

    UNITS: ClassVar[dict[str, str]] = {
        "img_resolution": "resolution",
        "in_channels": "image_channels",
        "label_dim": "classes",
        "depth": "blocks",
        "head_channels": "head_channels",
        "num_heads": "heads",
    }
    NEUTRAL: ClassVar[dict[str, Any]] = {"skip_scaling": None}
    label_draws = 3
    """Embedders that drop labels, each with a draw of its own."""

    def __init__(
        self,
        img_resolution: int = 32,
        in_channels: int = 4,
        label_dim: int = 1000,
        depth: Sequence[int] = (2, 5, 8, 5, 2),
        num_heads: int = 4,
        head_channels: int = 24,
        mlp_ratio: float = 2.0,
        down_factor: int | Sequence[int] = 2,
        down_kernel: int | None = 5,
        down_shortcut: bool = True,
        cosine_attention: bool = True,
        rope: bool = True,
        ffn: FeedForwardKind = "reparameterised",
        class_dropout: float = 0.1,
        learn_sigma: bool = True,
        skip_scaling: SkipScaling | None = None,
    ) -> None:
        super().__init__()
        check_counts("UDiT", num_heads=num_heads, head_channels=head_channels)
        self.img_resolution = img_resolution
        self.in_channels = in_channels
        self.label_dim = label_dim
        self.class_dropout = class_dropout
        self.learn_sigma = learn_sigma
        self.out_channels = in_channels * (2 if learn_sigma else 1)
        self._depth = list(depth)
        self._factors = [down_factor] * 5 if isinstance(down_factor, int) else list(down_factor)
        if len(self._depth) != 5 or len(self._factors) != 5:
            raise ValueError(f"there are five stages, not {len(self._depth)} depths and {len(self._factors)} factors")
        self._check_size(img_resolution, img_resolution)
        self._options = BlockOptions(
            num_heads, mlp_ratio, down_kernel, down_shortcut, cosine_attention, rope, ffn
        )  # fmt: skip
        width = num_heads * head_channels
        self._build(width)
        self.se = None if skip_scaling is None else skip_scaling.over_channels([width, 2 * width])

    def _build(self, width: int) -> None:
        """All layers in the published order. width: channels of the first level."""
        self.x_embedder = PatchEmbedding(self.in_channels, width, 3)
        for index in range(3):
            channels = width << index
            setattr(self, f"t_embedder_{index + 1}", TimestepEmbedder(channels))
            if self.label_dim:
                embedder = LabelEmbedder(self.label_dim, channels, self.class_dropout)
                setattr(self, f"y_embedder_{index + 1}", embedder)
        self.encoder_level_1 = self._stage(0, width)
        self.down1_2 = StageDown(width)
        self.encoder_level_2 = self._stage(1, 2 * width)
        self.down2_3 = StageDown(2 * width)
        self.latent = self._stage(2, 4 * width)
        self.up3_2 = StageUp(4 * width)
        self.reduce_chan_level2 = Convolution(4 * width, 2 * width, 1)
        self.decoder_level_2 = self._stage(3, 2 * width)
        self.up2_1 = StageUp(2 * width)
        self.reduce_chan_level1 = Convolution(2 * width, 2 * width, 1)
        self.decoder_level_1 = self._stage(4, 2 * width)
        self.output = Convolution(2 * width, 2 * width, 3)
        self.final_layer = FinalLayer(2 * width, self.out_channels)

    def _stage(self, index: int, width: int) -> nn.ModuleList:
        return nn.ModuleList(UDiTBlock(width, self._factors[index], self._options) for _ in range(self._depth[index]))

    def _check_size(self, height: int, width: int) -> None:
        needed = math.lcm(*(factor << level for factor, level in zip(self._factors, LEVELS, strict=True)))
        why = f"two halvings and token down-sampling by {', '.join(map(str, sorted(set(self._factors))))}"
        check_divisible("a latent", [height, width], needed, why)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, drop: Tensor | None = None) -> Tensor:
        """x: (N, in_channels, H, W) noisy latents; t: (N,) timesteps of the 1000-step process; y: (N,) int64 labels,
        `label_dim` for no class; drop: (N, 3), nonzero where a label is dropped for an embedder. Returns
        (N, out_channels, H, W). UsageError for a size that cannot be divided, or a label outside of the table."""
        self._check_size(x.shape[2], x.shape[3])
        c1, c2, c3 = (self._condition(index, t, y, drop) for index in range(3))
        x = x.contiguous(memory_format=torch.channels_last)
        skip1 = _run(self.encoder_level_1, self.x_embedder(x), c1)
        skip2 = _run(self.encoder_level_2, self.down1_2(skip1), c2)
        h = _run(self.latent, self.down2_3(skip2), c3)
        h = self.reduce_chan_level2(torch.cat([self.up3_2(h), self._scaled(skip2, 2)], dim=1))
        h = _run(self.decoder_level_2, h, c2)
        h = self.reduce_chan_level1(torch.cat([self.up2_1(h), self._scaled(skip1, 1)], dim=1))
        h = _run(self.decoder_level_1, h, c2)
        out: Tensor = self.final_layer(self.output(h), c2)
        return out

    def _scaled(self, skip: Tensor, number: int) -> Tensor:
        scaled: Tensor = skip if self.se is None else self.se(skip, number)
        return scaled

    def _condition(self, index: int, t: Tensor, y: Tensor | None, drop: Tensor | None) -> Tensor:
        """Embedding of one scale: (N, channels of the scale) float32."""
        embedded: Tensor = getattr(self, f"t_embedder_{index + 1}")(t)
        if not self.label_dim:
            return embedded
        assert y is not None, "a conditional network needs labels"
        label: Tensor = getattr(self, f"y_embedder_{index + 1}")(y, None if drop is None else drop[:, index])
        return embedded + label


def _run(stage: nn.ModuleList, x: Tensor, c: Tensor) -> Tensor:
    for block in stage:
        x = block(x, c)
    return x


def is_fusible(net: nn.Module) -> bool:
    """Whether `fused` would change anything: there is a re-parameterised feed-forward."""
    return any(isinstance(module, ReparameterisedFeedForward) for module in net.modules())


def fused(net: Module) -> Module:
    """A copy of a network for inference, in which every re-parameterised feed-forward is fused. `net` stays as it is.

    The copy gives the same output with fewer multiplications and parameters; it follows no later change of `net`.
    """
    memo: dict[int, Any] = {id(m): m.fused() for m in net.modules() if isinstance(m, ReparameterisedFeedForward)}
    copied: Module = copy.deepcopy(net, memo)
    return copied.requires_grad_(False)
