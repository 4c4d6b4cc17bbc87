"""SongUNet: the DDPM++ and NCSN++ architectures of Song et al. 2021 as used by Karras et al. 2022 (Table 8)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repro.models.layers import Conv2d, FourierEmbedding, GroupNorm, Init, Linear, PositionalEmbedding, UNetBlock
from repro.models.skips import SkipScaling

EMBEDDINGS = ("positional", "fourier")
ENCODERS = ("standard", "skip", "residual")
DECODERS = ("standard", "skip")
EPS = 1e-6


def _one_of(name: str, value: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
    return value


class SongUNet(nn.Module):
    """Raw network F of the denoiser (Karras et al. 2022, Equation 7).

    The defaults give DDPM++. NCSN++ is embedding_type "fourier", channel_mult_noise 2, encoder_type "residual" and
    resample_filter (1, 3, 3, 1). `label_dropout` is only kept here: the training step applies it to the labels.

    img_resolution: pixels of a side, divisible by 2 ** (len(channel_mult) - 1).
    attn_resolutions: resolutions whose blocks have self-attention; the lowest resolution always has one such block.
    augment_dim: width of the augmentation labels, 0 without them.
    skip_scaling: scaling of the long skips (not the factor within blocks); None for none.
    """

    UNITS: ClassVar[dict[str, str]] = {
        "img_resolution": "resolution",
        "in_channels": "image_channels",
        "out_channels": "image_channels",
        "label_dim": "classes",
        "model_channels": "channels",
        "num_blocks": "blocks",
        "attn_resolutions": "resolution",
    }
    NEUTRAL: ClassVar[dict[str, Any]] = {"skip_scaling": None}

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Sequence[int] = (1, 1),
        skip_scaling: SkipScaling | None = None,
    ) -> None:
        super().__init__()
        self.img_resolution = img_resolution
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.label_dim = label_dim
        self.augment_dim = augment_dim
        self.label_dropout = label_dropout
        self.embedding_type = _one_of("embedding_type", embedding_type, EMBEDDINGS)
        self.encoder_type = _one_of("encoder_type", encoder_type, ENCODERS)
        self.decoder_type = _one_of("decoder_type", decoder_type, DECODERS)
        self._num_blocks = num_blocks
        self._attn_resolutions = tuple(attn_resolutions)
        self._resample_filter = tuple(resample_filter)
        self._widths = [model_channels * mult for mult in channel_mult]
        self._init = Init("xavier_uniform")
        self._init_zero = Init("xavier_uniform", weight=1e-5)
        self._block_options: dict[str, Any] = {
            "emb_channels": model_channels * channel_mult_emb,
            "dropout": dropout,
            "skip_scale": math.sqrt(0.5),
            "eps": EPS,
            "resample_filter": self._resample_filter,
            "resample_proj": True,
            "adaptive_scale": False,
            "init": self._init,
            "init_zero": self._init_zero,
            "init_attn": Init("xavier_uniform", weight=math.sqrt(0.2)),
        }
        self._build_mapping(model_channels * channel_mult_noise, model_channels * channel_mult_emb)
        skips = self._build_encoder(model_channels)
        self._build_decoder(list(skips))
        self.se = None if skip_scaling is None else skip_scaling.over_channels(skips)

    def _build_mapping(self, noise_channels: int, emb_channels: int) -> None:
        """Noise, label and augmentation embeddings and the two layers on top."""
        self.map_noise = (
            PositionalEmbedding(noise_channels, endpoint=True)
            if self.embedding_type == "positional"
            else FourierEmbedding(noise_channels)
        )
        init = self._init
        self.map_label = Linear(self.label_dim, noise_channels, init=init) if self.label_dim else None
        self.map_augment = Linear(self.augment_dim, noise_channels, bias=False, init=init) if self.augment_dim else None
        self.map_layer0 = Linear(noise_channels, emb_channels, init=init)
        self.map_layer1 = Linear(emb_channels, emb_channels, init=init)

    def _block(self, in_channels: int, out_channels: int, attention: bool = False, **resampling: Any) -> UNetBlock:
        return UNetBlock(in_channels, out_channels, num_heads=int(attention), **resampling, **self._block_options)

    def _build_encoder(self, model_channels: int) -> list[int]:
        """Fill `enc`; return the channel counts of the skip connections in the order in which they are pushed."""
        self.enc = nn.ModuleDict()
        skips: list[int] = []
        channels, aux_channels = self.in_channels, self.in_channels
        resampled: dict[str, Any] = {"down": True, "resample_filter": self._resample_filter, "init": self._init}
        for level, width in enumerate(self._widths):
            res = self.img_resolution >> level
            if level == 0:
                channels = model_channels  # whatever channel_mult[0] is
                self.enc[f"{res}x{res}_conv"] = Conv2d(self.in_channels, channels, 3, init=self._init)
            else:
                self.enc[f"{res}x{res}_down"] = self._block(channels, channels, down=True)
                if self.encoder_type == "skip":
                    self.enc[f"{res}x{res}_aux_down"] = Conv2d(aux_channels, aux_channels, 0, **resampled)
                    self.enc[f"{res}x{res}_aux_skip"] = Conv2d(aux_channels, channels, 1, init=self._init)
                elif self.encoder_type == "residual":
                    conv = Conv2d(aux_channels, channels, 3, fused_resample=True, **resampled)
                    self.enc[f"{res}x{res}_aux_residual"] = conv
                    aux_channels = channels
            skips.append(channels)
            for index in range(self._num_blocks):
                attention = res in self._attn_resolutions
                self.enc[f"{res}x{res}_block{index}"] = self._block(channels, width, attention)
                channels = width
                skips.append(channels)
        return skips

    def _build_decoder(self, skips: list[int]) -> None:
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
                attention = index == self._num_blocks and res in self._attn_resolutions
                self.dec[f"{res}x{res}_block{index}"] = self._block(channels + skips.pop(), width, attention)
                channels = width
            if self.decoder_type == "skip" or level == 0:
                self._build_output(res, channels, first=level == lowest)

    def _build_output(self, res: int, channels: int, first: bool) -> None:
        if self.decoder_type == "skip" and not first:
            self.dec[f"{res}x{res}_aux_up"] = Conv2d(
                self.out_channels, self.out_channels, 0, up=True, resample_filter=self._resample_filter
            )
        self.dec[f"{res}x{res}_aux_norm"] = GroupNorm(channels, EPS)
        self.dec[f"{res}x{res}_aux_conv"] = Conv2d(channels, self.out_channels, 3, init=self._init_zero)

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
        skips = self._encode(x, emb)
        return self._decode(skips, emb)

    def _embed(self, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        cos, sin = self.map_noise(noise_labels).chunk(2, dim=1)
        emb = torch.cat([sin, cos], dim=1)
        if self.map_label is not None:
            if class_labels is None:
                raise ValueError(f"this network has {self.label_dim} classes and needs class_labels")
            emb = emb + self.map_label(class_labels * math.sqrt(self.label_dim))
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def _encode(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """Outputs of all encoder entries that the decoder takes, in order."""
        skips: list[Tensor] = []
        aux = x
        for name, module in self.enc.items():
            if "aux_down" in name:
                aux = module(aux)
            elif "aux_skip" in name:
                x = skips[-1] = x + module(aux)
            elif "aux_residual" in name:
                x = skips[-1] = aux = (x + module(aux)) * math.sqrt(0.5)
            else:
                x = module(x, emb) if isinstance(module, UNetBlock) else module(x)
                skips.append(x)
        return skips

    def _decode(self, skips: list[Tensor], emb: Tensor) -> Tensor:
        x = skips[-1]
        output: Tensor | None = None
        normed = x
        for name, module in self.dec.items():
            if "aux_up" in name:
                output = module(output)
            elif "aux_norm" in name:
                normed = module(x)
            elif "aux_conv" in name:
                image = module(F.silu(normed))
                output = image if output is None else output + image
            else:
                if "block" in name:
                    number = len(skips)
                    skip = skips.pop()
                    x = torch.cat([x, skip if self.se is None else self.se(skip, number)], dim=1)
                x = module(x, emb)
        assert output is not None
        return output
