"""The U-Net of Karras et al. 2024 (EDM2): configuration G, and its forms in the ladder C to F of Table 1."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repro.errors import UsageError
from repro.models.edm2_layers import (
    SILU_RMS,
    MPConv,
    MPFourier,
    ResampleMode,
    WeightRule,
    attention,
    mp_cat,
    mp_sum,
    normalize,
    pixel_norm,
    resample,
    sum_factors,
)
from repro.models.layers import dropout
from repro.models.skips import SkipScaling

CHANNELS_LAST_BELOW = 64
"""On a CPU convolutions of few channels are faster with channels last (a step by a seventh); of many not."""


@dataclasses.dataclass(frozen=True)
class BlockOptions:
    """What all blocks of a network share.

    Args:
        emb_channels: width of the embedding.
        channels_per_head: width of an attention head.
        dropout: probability, in training.
        res_balance: weight of the residual branch in the sum; None for the plain sum (configurations C to F).
        attn_balance: the same of the attention.
        clip_act: limit of the absolute values that leave a block; None for none.
        resample_filter: separable filter of `resample`.
        weights: how layers use their weights.
        mp_silu: divide silu(x) by its magnitude.
        learned_gains: a trainable gain, 0 at first, on the embedding's modulation; else the gain is 1.
    """

    emb_channels: int
    channels_per_head: int = 64
    dropout: float = 0.0
    res_balance: float | None = 0.3
    attn_balance: float | None = 0.3
    clip_act: float | None = 256.0
    resample_filter: Sequence[float] = (1, 1)
    weights: WeightRule = "forced"
    mp_silu: bool = True
    learned_gains: bool = True

    @property
    def silu_gain(self) -> float:
        """What silu is multiplied by: folded into the weights of the layer behind it."""
        return 1 / SILU_RMS if self.mp_silu else 1.0


class Block(nn.Module):
    """Block of encoder or decoder (Karras et al. 2024, Figures 21 and 22; configurations F and G).

    x: (N, in_channels, H, W), emb: (N or 1, emb_channels) -> (N, out_channels, H', W'). Attention has one head for
    every full `channels_per_head` output channels, and there is none where there is no such head.

    Args:
        decoder: without pixel norm, and with conv_res0 on the concatenated input.
        mode: resampling of the block's input.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        decoder: bool,
        mode: ResampleMode = "keep",
        attention: bool = False,
        options: BlockOptions,
    ) -> None:
        super().__init__()
        weights = options.weights
        self.decoder = decoder
        self.mode = mode
        self.options = options
        self.num_heads = out_channels // options.channels_per_head if attention else 0
        if self.num_heads and out_channels % self.num_heads:
            raise ValueError(f"{out_channels} channels cannot be split into {self.num_heads} heads")
        self.emb_gain = nn.Parameter(torch.zeros([])) if options.learned_gains else None
        self.conv_res0 = MPConv(in_channels if decoder else out_channels, out_channels, 3, weights=weights)
        self.emb_linear = MPConv(options.emb_channels, out_channels, weights=weights)
        self.conv_res1 = MPConv(out_channels, out_channels, 3, weights=weights)
        self.conv_skip = MPConv(in_channels, out_channels, 1, weights=weights) if in_channels != out_channels else None
        if self.num_heads:
            self.attn_qkv = MPConv(out_channels, 3 * out_channels, 1, weights=weights)
            self.attn_proj = MPConv(out_channels, out_channels, 1, weights=weights)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        options = self.options
        x = resample(x, options.resample_filter, self.mode)
        if not self.decoder:
            x = pixel_norm(x if self.conv_skip is None else self.conv_skip(x))
        main, branch = sum_factors(options.res_balance)
        y = self.conv_res0(F.silu(x), options.silu_gain)
        y = F.silu(y * self._modulation(emb, y))
        if self.training and options.dropout:
            y = dropout(y, options.dropout)
        y = self.conv_res1(y, options.silu_gain * branch)
        if self.decoder and self.conv_skip is not None:
            x = torch.add(y, self.conv_skip(x, main))
        else:
            x = torch.add(y, x, alpha=main)
        if self.num_heads:
            main, branch = sum_factors(options.attn_balance)
            y = self.attn_proj(attention(self.attn_qkv(x), self.num_heads), branch)
            x = torch.add(y, x, alpha=main)
        return x if options.clip_act is None else x.clamp(-options.clip_act, options.clip_act)

    def _modulation(self, emb: Tensor, y: Tensor) -> Tensor:
        """Factor of each channel, (N or 1, out_channels, 1, 1) in the dtype of y; float32 before the cast."""
        gain = 1.0 if self.emb_gain is None else self.emb_gain
        return (self.emb_linear(emb, gain) + 1)[:, :, None, None].to(y.dtype)


class PlainGroupNorm(nn.Module):
    """x / (rms over group and pixels + 1e-4): group norm without mean, scale and shift (configurations C to E)."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.num_groups = min(32, num_channels // 4)
        if self.num_groups < 1 or num_channels % self.num_groups:
            raise ValueError(f"{num_channels} channels cannot be split into {self.num_groups} groups")

    def forward(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        return normalize(x.reshape(n, self.num_groups, -1), 2).reshape(n, channels, height, width)


class GroupNormBlock(nn.Module):
    """Block of configurations C to E: ADM's, streamlined (Karras et al. 2024, Figures 17 to 19). Arguments as `Block`.

    Residual branch: norm, silu, resampling, 3x3, norm, scale by the embedding, silu, dropout, 3x3. Encoder and decoder
    blocks are alike.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        decoder: bool,
        mode: ResampleMode = "keep",
        attention: bool = False,
        options: BlockOptions,
    ) -> None:
        super().__init__()
        weights = options.weights
        self.mode = mode
        self.options = options
        self.num_heads = out_channels // options.channels_per_head if attention else 0
        if self.num_heads and out_channels % self.num_heads:
            raise ValueError(f"{out_channels} channels cannot be split into {self.num_heads} heads")
        self.norm0 = PlainGroupNorm(in_channels)
        self.conv_res0 = MPConv(in_channels, out_channels, 3, weights=weights)
        self.emb_linear = MPConv(options.emb_channels, out_channels, weights=weights)
        self.norm1 = PlainGroupNorm(out_channels)
        self.conv_res1 = MPConv(out_channels, out_channels, 3, weights=weights)
        self.conv_skip = MPConv(in_channels, out_channels, 1, weights=weights) if in_channels != out_channels else None
        if self.num_heads:
            self.attn_qkv = MPConv(out_channels, 3 * out_channels, 1, weights=weights)
            self.attn_proj = MPConv(out_channels, out_channels, 1, weights=weights)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        options, f = self.options, self.options.resample_filter
        y = self.conv_res0(resample(F.silu(self.norm0(x)), f, self.mode))
        scale = (self.emb_linear(emb) + 1)[:, :, None, None].to(y.dtype)
        y = F.silu(self.norm1(y) * scale)
        if self.training and options.dropout:
            y = dropout(y, options.dropout)
        x = resample(x, f, self.mode)
        x = (x if self.conv_skip is None else self.conv_skip(x)) + self.conv_res1(y)
        if self.num_heads:
            x = x + self.attn_proj(attention(self.attn_qkv(x), self.num_heads))
        return x if options.clip_act is None else x.clamp(-options.clip_act, options.clip_act)


class EDM2UNet(nn.Module):
    """Raw network F of the denoiser. The defaults are configuration G at size S (EDM2-S).

    Args:
        img_resolution: pixels of a side, divisible by 2 ** (len(channel_mult) - 1).
        img_channels: channels of the image; a channel of ones is appended to the input.
        label_dim: number of classes; 0 for an unconditional network.
        model_channels: base width, multiplied by channel_mult at each level.
        channel_mult_noise: width of the Fourier features over model_channels; None for that of the first level.
        channel_mult_emb: width of the embedding over model_channels; None for that of the widest level.
        num_blocks: encoder blocks a level; the decoder has one more.
        attn_resolutions: resolutions with self-attention.
        label_balance: weight of the class in the embedding; None for the plain sum.
        concat_balance: weight of the skip connection in a concatenation; None for the plain one.
        channels_per_head, dropout, res_balance, attn_balance, clip_act, resample_filter, weights, mp_silu,
            learned_gains: see `BlockOptions`.
        mp_fourier: Fourier features of unit magnitude (sqrt(2) cos).
        group_norm: blocks with group norm, a second layer of the embedding and a norm before the output (C to E).
        skip_scaling: scaling of the long skips, before their magnitude-preserving concatenation; None for none.
    """

    UNITS: ClassVar[dict[str, str]] = {
        "img_resolution": "resolution",
        "img_channels": "image_channels",
        "model_channels": "channels",
        "num_blocks": "blocks",
        "attn_resolutions": "resolution",
        "channels_per_head": "head_channels",
        "label_dim": "classes",
    }
    NEUTRAL: ClassVar[dict[str, Any]] = {"skip_scaling": None}

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_noise: int | None = None,
        channel_mult_emb: int | None = None,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (16, 8),
        label_balance: float | None = 0.5,
        concat_balance: float | None = 0.5,
        channels_per_head: int = 64,
        dropout: float = 0.0,
        res_balance: float | None = 0.3,
        attn_balance: float | None = 0.3,
        clip_act: float | None = 256.0,
        resample_filter: Sequence[float] = (1, 1),
        weights: WeightRule = "forced",
        mp_silu: bool = True,
        mp_fourier: bool = True,
        learned_gains: bool = True,
        group_norm: bool = False,
        skip_scaling: SkipScaling | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise UsageError(f"EDM2UNet.dropout is a probability below 1, not {dropout:g}")
        self.img_resolution = img_resolution
        self.in_channels = self.img_channels = img_channels
        self.label_dim = label_dim
        self.label_balance = label_balance
        self.concat_balance = concat_balance
        self.weights = weights
        self.mp_silu = mp_silu
        self.mp_fourier = mp_fourier
        self.group_norm = group_norm
        self._attn_resolutions = tuple(attn_resolutions)
        self._num_blocks = num_blocks
        self._widths = [model_channels * mult for mult in channel_mult]
        noise_channels = self._widths[0] if channel_mult_noise is None else model_channels * channel_mult_noise
        emb_channels = max(self._widths) if channel_mult_emb is None else model_channels * channel_mult_emb
        self._options = BlockOptions(
            emb_channels, channels_per_head, dropout, res_balance, attn_balance, clip_act, resample_filter, weights,
            mp_silu, learned_gains,
        )  # fmt: skip
        self.out_gain = nn.Parameter(torch.zeros([])) if learned_gains else None
        self.emb_fourier = MPFourier(noise_channels, magnitude_preserving=mp_fourier)
        self.emb_noise = MPConv(noise_channels, emb_channels, weights=weights)
        self.emb_second = MPConv(emb_channels, emb_channels, weights=weights) if group_norm else None
        self.emb_label = MPConv(label_dim, emb_channels, weights=weights) if label_dim else None
        skips = self._build_encoder()
        channels = self._build_decoder(list(skips))
        self.out_norm = PlainGroupNorm(channels) if group_norm else None
        self.out_conv = MPConv(channels, img_channels, 3, weights=weights)
        self.se = None if skip_scaling is None else skip_scaling.over_channels(skips)

    def _block(
        self, c_in: int, c_out: int, decoder: bool, mode: ResampleMode = "keep", attention: bool = False
    ) -> nn.Module:
        kind = GroupNormBlock if self.group_norm else Block
        return kind(c_in, c_out, decoder=decoder, mode=mode, attention=attention, options=self._options)

    def _build_encoder(self) -> list[int]:
        """Fill `enc`; return the channel counts of the skip connections in the order in which they are pushed."""
        self.enc = nn.ModuleDict()
        skips: list[int] = []
        channels = self._widths[0]
        for level, width in enumerate(self._widths):
            res = self.img_resolution >> level
            if level == 0:
                self.enc[f"{res}x{res}_conv"] = MPConv(self.img_channels + 1, channels, 3, weights=self.weights)
            else:
                self.enc[f"{res}x{res}_down"] = self._block(channels, channels, False, "down")
            skips.append(channels)
            for index in range(self._num_blocks):
                block = self._block(channels, width, False, attention=res in self._attn_resolutions)
                self.enc[f"{res}x{res}_block{index}"] = block
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
                self.dec[f"{res}x{res}_in0"] = self._block(channels, channels, True, attention=True)
                self.dec[f"{res}x{res}_in1"] = self._block(channels, channels, True)
            else:
                self.dec[f"{res}x{res}_up"] = self._block(channels, channels, True, "up")
            for index in range(self._num_blocks + 1):
                attended = res in self._attn_resolutions
                block = self._block(channels + skips.pop(), width, True, attention=attended)
                self.dec[f"{res}x{res}_block{index}"] = block
                channels = width
        return channels

    def forward(self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """x: (N, img_channels, H, W) already scaled by c_in; noise_labels: (N,) or (1,) c_noise; class_labels:
        (N or 1, label_dim) one-hot, not scaled. Returns (N, img_channels, H, W) in x's dtype."""
        emb = self._embed(noise_labels, class_labels)
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        if x.device.type != "cpu" or self._widths[0] < CHANNELS_LAST_BELOW:
            x = x.contiguous(memory_format=torch.channels_last)
        skips: list[Tensor] = []
        for block in self.enc.values():
            x = block(x) if isinstance(block, MPConv) else block(x, emb)
            skips.append(x)
        for name, block in self.dec.items():
            if "block" in name:
                number = len(skips)
                skip = skips.pop()
                x = mp_cat(x, skip if self.se is None else self.se(skip, number), t=self.concat_balance)
            x = block(x, emb)
        if self.out_norm is not None:
            x = F.silu(self.out_norm(x))
        output: Tensor = self.out_conv(x, 1.0 if self.out_gain is None else self.out_gain)
        return output

    def _embed(self, noise_labels: Tensor, class_labels: Tensor | None) -> Tensor:
        emb = self.emb_noise(self.emb_fourier(noise_labels))
        if self.emb_second is not None:
            emb = self.emb_second(F.silu(emb))
        if self.emb_label is not None:
            if class_labels is None:
                raise ValueError(f"this network has {self.label_dim} classes and needs class_labels")
            label = self.emb_label(class_labels.to(emb.dtype) * math.sqrt(self.label_dim))
            emb = mp_sum(emb, label, self.label_balance)
        emb = F.silu(emb)
        return emb / SILU_RMS if self.mp_silu else emb
