"""DhariwalUNet: the ADM architecture of Dhariwal and Nichol 2021 as used by Karras et al. 2022 (Table 8)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repro.models.layers import Conv2d, GroupNorm, Init, Linear, PositionalEmbedding, UNetBlock
from repro.models.skips import SkipScaling


class DhariwalUNet(nn.Module):
    """Raw network F of the denoiser. `label_dropout` is only kept here: the training step applies it to the labels.

    img_resolution: pixels of a side, divisible by 2 ** (len(channel_mult) - 1).
    attn_resolutions: resolutions with self-attention, one head for every full channels_per_head channels (none where
        there is no such head).
    clip_act: limit of the absolute values that leave a block; None for none. EDM2 has 256 wherever it uses float16.
    skip_scaling: scaling of the long skips; None for none.
    """

    UNITS: ClassVar[dict[str, str]] = {
        "img_resolution": "resolution",
        "in_channels": "image_channels",
        "out_channels": "image_channels",
        "model_channels": "channels",
        "num_blocks": "blocks",
        "attn_resolutions": "resolution",
        "channels_per_head": "head_channels",
        "label_dim": "classes",
    }
    NEUTRAL: ClassVar[dict[str, Any]] = {"channels_per_head": 64, "clip_act": None, "skip_scaling": None}

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
        channels_per_head: int = 64,
        clip_act: float | None = None,
        skip_scaling: SkipScaling | None = None,
    ) -> None:
        super().__init__()
        self.img_resolution = img_resolution
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.label_dim = label_dim
        self.augment_dim = augment_dim
        self.label_dropout = label_dropout
        emb_channels = model_channels * channel_mult_emb
        third = math.sqrt(1 / 3)
        init = Init("kaiming_uniform", weight=third, bias=third)
        init_zero = Init("kaiming_uniform", weight=0.0, bias=0.0)
        self._num_blocks = num_blocks
        self._attn_resolutions = tuple(attn_resolutions)
        self._widths = [model_channels * mult for mult in channel_mult]
        self._block_options: dict[str, Any] = {
            "emb_channels": emb_channels,
            "dropout": dropout,
            "init": init,
            "init_zero": init_zero,
            "clip_act": clip_act,
        }
        self._channels_per_head = channels_per_head
        self.map_noise = PositionalEmbedding(model_channels)
        self.map_augment = Linear(augment_dim, model_channels, bias=False, init=init_zero) if augment_dim else None
        self.map_layer0 = Linear(model_channels, emb_channels, init=init)
        self.map_layer1 = Linear(emb_channels, emb_channels, init=init)
        init_label = Init("kaiming_normal", weight=math.sqrt(label_dim))
        self.map_label = Linear(label_dim, emb_channels, bias=False, init=init_label) if label_dim else None
        skips = self._build_encoder(init)
        channels = self._build_decoder(list(skips))
        self.out_norm = GroupNorm(channels)
        self.out_conv = Conv2d(channels, out_channels, 3, init=init_zero)
        self.se = None if skip_scaling is None else skip_scaling.over_channels(skips)

    def _block(self, in_channels: int, out_channels: int, attention: bool = False, **resampling: Any) -> UNetBlock:
        heads = out_channels // self._channels_per_head if attention else 0
        return UNetBlock(in_channels, out_channels, num_heads=heads, **resampling, **self._block_options)

    def _build_encoder(self, init: Init) -> list[int]:
        """Fill `enc`; return the channel counts of the skip connections in the order in which they are pushed."""
        self.enc = nn.ModuleDict()
        skips: list[int] = []
        channels = self._widths[0]
        for level, width in enumerate(self._widths):
            res = self.img_resolution >> level
            if level == 0:
                self.enc[f"{res}x{res}_conv"] = Conv2d(self.in_channels, channels, 3, init=init)
            else:
                self.enc[f"{res}x{res}_down"] = self._block(channels, channels, down=True)
            skips.append(channels)
            for index in range(self._num_blocks):
                self.enc[f"{res}x{res}_block{index}"] = self._block(channels, width, res in self._attn_resolutions)
                channels = width
                skips.append(channels)
        return skips

    def _build_decoder(self, skips: list[int]) -> int:
        """Fill `dec`; return the channels of its output."""
        self.dec = nn.ModuleDict()
        channels = skips[-1]
        lowest = len(self._widths) - 1
        for level, width in reversed(list(enumerate(self._widths))):
            res = self.img_resolution >> level
            if level == lowest:
                self.dec[f"{res}x{res}_in0"] = self._block(channels, channels, attention=True)
                self.dec[f"{res}x{res}_in1"] = self._block(channels, channels)
            else:
                self.dec[f"{res}x{res}_up"] = self._block(channels, channels, up=True)
            for index in range(self._num_blocks + 1):
                block = self._block(channels + skips.pop(), width, res in self._attn_resolutions)
                self.dec[f"{res}x{res}_block{index}"] = block
                channels = width
        return channels

    def forward(
        self,
        x: Tensor,
        noise_labels: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """x: (N, in_channels, H, W) already scaled by c_in; noise_labels: (N,) or (1,) c_noise; class_labels:
        (N or 1, label_dim) one-hot; augment_labels: (N, augment_dim). Returns (N, out_channels, H, W) in x's dtype."""
        emb = self._embed(noise_labels, class_labels, augment_labels)
        skips: list[Tensor] = []
        for block in self.enc.values():
            x = block(x, emb) if isinstance(block, UNetBlock) else block(x)
            skips.append(x)
        for name, block in self.dec.items():
            if "block" in name:
                number = len(skips)
                skip = skips.pop()
                x = torch.cat([x, skip if self.se is None else self.se(skip, number)], dim=1)
            x = block(x, emb)
        output: Tensor = self.out_conv(F.silu(self.out_norm(x)))
        return output

    def _embed(self, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        emb = self.map_noise(noise_labels)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if self.map_label is not None:
            if class_labels is None:
                raise ValueError(f"this network has {self.label_dim} classes and needs class_labels")
            emb = emb + self.map_label(class_labels)
        return F.silu(emb)
