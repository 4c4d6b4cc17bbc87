"""Which parts of a network make its U: what measurements of long skips look at, in every family of the suite."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from repro.errors import UsageError
from repro.models.adm import DhariwalUNet
from repro.models.ddpm import DDPMUNet
from repro.models.edm2 import EDM2UNet
from repro.models.layers import UNetBlock
from repro.models.song import SongUNet
from repro.models.udit import UDiT
from repro.models.uvit import UViT


class Part(NamedTuple):
    """A block, or a stage of blocks that run one after the other: its name, and those modules."""

    name: str
    modules: list[nn.Module]


class UShape(NamedTuple):
    """Parts in running order. Part i of the encoder stores skip i; part j of the N of the decoder takes skip N-j+1."""

    encoder: list[Part]
    middle: list[Part]
    decoder: list[Part]

    @property
    def parts(self) -> list[Part]:
        return [*self.encoder, *self.middle, *self.decoder]


def u_shape(net: nn.Module) -> UShape:
    """The parts of a network. UsageError for one without long skips."""
    if isinstance(net, UViT) and net.count:
        numbered = (_numbered("encoder", net.in_blocks), _numbered("decoder", net.out_blocks))
        return UShape(numbered[0], [Part("middle", [net.mid_block])], numbered[1])
    if isinstance(net, DDPMUNet):
        decoder = [Part(name, [m]) for name, m in net.dec.items() if isinstance(m, UNetBlock)]
        return UShape([Part(name, [m]) for name, m in net.enc.items()], _numbered("middle", net.mid), decoder)
    if isinstance(net, SongUNet | DhariwalUNet | EDM2UNet):
        encoder = [Part(f"encoder {name}", [m]) for name, m in net.enc.items() if "aux" not in name]
        decoder = [Part(f"decoder {name}", [m]) for name, m in net.dec.items() if "block" in name]
        return UShape(encoder, [Part(n, [m]) for n, m in net.dec.items() if n.endswith(("_in0", "_in1"))], decoder)
    if isinstance(net, UDiT):
        encoder = [_stage(net, name) for name in ("encoder_level_1", "encoder_level_2")]
        return UShape(encoder, [_stage(net, "latent")], [_stage(net, f"decoder_level_{i}") for i in (2, 1)])
    raise UsageError(f"{type(net).__name__} has no long skips to look at")


def _numbered(name: str, modules: nn.ModuleList) -> list[Part]:
    return [Part(f"{name} {index + 1}", [module]) for index, module in enumerate(modules)]


def _stage(net: nn.Module, name: str) -> Part:
    return Part(name.replace("_", " "), list(net.get_submodule(name).children()))
