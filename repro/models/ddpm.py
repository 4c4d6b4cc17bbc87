"""DDPM's U-Net for CIFAR-10 (Ho et al. 2020, appendix B), which stands in for the unpublished ones of ScaleLong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repro.models.dit_layers import timestep_features
from repro.models.layers import Conv2d, GroupNorm, Init, Linear, UNetBlock
from repro.models.skips import SkipScaling

EPS = 1e-6
XAVIER = Init("xavier_uniform")
TINY = Init("xavier_uniform", weight=1e-5)


class Downsample(nn.Module):
    """3x3 convolution of stride 2, padded at the lower right. (N, C, H, W) -> (N, C, H / 2, W / 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, init=XAVIER)

    def forward(self, x: Tensor) -> Tensor:
        assert self.conv.weight is not None
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.conv.weight, self.conv.bias, stride=2)


class Upsample(nn.Module):
    """Nearest neighbours, then a 3x3 convolution. (N, C, H, W) -> (N, C, 2 H, 2 W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, init=XAVIER)

    def forward(self, x: Tensor) -> Tensor:
        enlarged = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        y: Tensor = self.conv(enlarged)
        return y


class DDPMUNet(nn.Module):
    """The network; the defaults have 35.7 million parameters and N = 12 long skips. Unconditional.

    The encoder stores its input convolution, every block and every down-sampling; each decoder block takes one of them.

    Args:
        img_resolution: pixels of a side, divisible by 2 ** (len(channel_mult) - 1).
        in_channels: image channels.
        model_channels: base width, multiplied by channel_mult at each level.
        num_blocks: encoder blocks a level; the decoder has one more.
        attn_resolutions: resolutions whose blocks have self-attention (one head).
        dropout: in the blocks.
        skip_scaling: scaling of the long skips; None for none.
    """

    UNITS: ClassVar[dict[str, str]] = {
        "img_resolution": "resolution",
        "in_channels": "image_channels",
        "model_channels": "channels",
        "num_blocks": "blocks",
        "attn_resolutions": "resolution",
    }
    NEUTRAL: ClassVar[dict[str, Any]] = {"skip_scaling": None}
    label_dim = 0

    def __init__(
        self,
        img_resolution: int = 32,
        in_channels: int = 3,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        num_blocks: int = 2,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.1,
        skip_scaling: SkipScaling | None = None,
    ) -> None:
        super().__init__()
        self.img_resolution = img_resolution
        self.in_channels = in_channels
        self.model_channels = model_channels
        self._options: dict[str, Any] = {
            "emb_channels": 4 * model_channels,
            "dropout": dropout,
            "eps": EPS,
            "adaptive_scale": False,
            "init": XAVIER,
            "init_zero": TINY,
        }
        self.map_layer0 = Linear(model_channels, 4 * model_channels, init=XAVIER)
        self.map_layer1 = Linear(4 * model_channels, 4 * model_channels, init=XAVIER)
        self.enc = nn.ModuleDict()
        self.enc["conv"] = Conv2d(in_channels, model_channels, 3, init=XAVIER)
        skips, channels = [model_channels], model_channels
        for level, mult in enumerate(channel_mult):
            attention = img_resolution >> level in attn_resolutions
            for index in range(num_blocks):
                self.enc[f"level{level}_block{index}"] = self._block(channels, model_channels * mult, attention)
                channels = model_channels * mult
                skips.append(channels)
            if level < len(channel_mult) - 1:
                self.enc[f"level{level}_down"] = Downsample(channels)
                skips.append(channels)
        self.mid = nn.ModuleList([self._block(channels, channels, True), self._block(channels, channels, False)])
        left = list(skips)
        self.dec = nn.ModuleDict()
        for level, mult in reversed(list(enumerate(channel_mult))):
            attention = img_resolution >> level in attn_resolutions
            for index in range(num_blocks + 1):
                block = self._block(channels + left.pop(), model_channels * mult, attention)
                self.dec[f"level{level}_block{index}"] = block
                channels = model_channels * mult
            if level:
                self.dec[f"level{level}_up"] = Upsample(channels)
        self.out_norm = GroupNorm(channels, EPS)
        self.out_conv = Conv2d(channels, in_channels, 3, init=TINY)
        self.se = None if skip_scaling is None else skip_scaling.over_channels(skips)

    def _block(self, in_channels: int, out_channels: int, attention: bool) -> UNetBlock:
        return UNetBlock(in_channels, out_channels, num_heads=int(attention), **self._options)

    def forward(self, x: Tensor, tau: Tensor, condition: None = None) -> Tensor:
        """x: (N, C, H, W) noisy images; tau: (N,) times. Returns (N, C, H, W), the prediction."""
        features = timestep_features(tau, self.model_channels)
        emb = F.silu(self.map_layer1(F.silu(self.map_layer0(features))))
        skips: list[Tensor] = []
        for module in self.enc.values():
            x = module(x, emb) if isinstance(module, UNetBlock) else module(x)
            skips.append(x)
        for block in self.mid:
            x = block(x, emb)
        for module in self.dec.values():
            if isinstance(module, UNetBlock):
                number = len(skips)
                skip = skips.pop()
                x = module(torch.cat([x, skip if self.se is None else self.se(skip, number)], dim=1), emb)
            else:
                x = module(x)
        output: Tensor = self.out_conv(F.silu(self.out_norm(x)))
        return output
