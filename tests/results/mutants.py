"""Planted faults: one expression of one function replaced, as a careless edit would."""

from __future__ import annotations
import __future__

import dataclasses
import inspect
import sys
import textwrap
from typing import Any

import pytest

from repro import sampling
from repro.config import REGISTRY
from repro.data import orders, stream
from repro.diffusion import images, losses, precond, samplers
from repro.models import layers, song
from repro.training import augment, ema, loop, optimizers, schedules, step

F_VP, F_VE = "f/cifar10-cond-vp", "f/cifar10-cond-ve"
E_VP, A_VP, A_VE = "e/cifar10-cond-vp", "a/cifar10-cond-vp", "a/cifar10-cond-ve"


@dataclasses.dataclass(frozen=True)
class Fault:
    """In `owner.name`, `old` becomes `new`; noticed in the fingerprint of `cell`."""

    label: str
    cell: str
    owner: Any
    name: str
    old: str
    new: str

    def plant(self, patch: pytest.MonkeyPatch) -> None:
        """Compile the changed source in its own module and put it wherever the function is known."""
        original = getattr(self.owner, self.name)
        source = textwrap.dedent(inspect.getsource(original))
        assert source.count(self.old) >= 1, f"{self.label}: {self.old!r} is not in {self.name}"
        module = sys.modules[inspect.unwrap(original).__module__]
        names: dict[str, Any] = {}
        code = compile(source.replace(self.old, self.new), "<fault>", "exec", __future__.annotations.compiler_flag)
        exec(code, vars(module), names)
        changed = names[self.name]
        vars(changed).update(vars(original))
        patch.setattr(self.owner, self.name, changed)
        if inspect.ismodule(self.owner):
            for other in (loop, sampling, step, samplers, losses):
                if getattr(other, self.name, None) is original:
                    patch.setattr(other, self.name, changed)
            if REGISTRY.get(self.name) is original:
                patch.setitem(REGISTRY, self.name, changed)


HEUN = "0.5 * slope + 0.5 * derivative(x_next, t_next)"
FAULTS = [
    Fault("edm loss: P_mean", E_VP, losses.EDMLoss, "sample_sigma", "self.P_mean", "(self.P_mean + 0.01)"),
    Fault("edm loss: P_std", E_VP, losses.EDMLoss, "sample_sigma", "self.P_std", "(1.01 * self.P_std)"),
    Fault("edm loss: weight", E_VP, losses.EDMLoss, "weight", "(sigma * self", "(sigma + self"),
    Fault("vp loss: epsilon_t", A_VP, losses.VPLoss, "sample_sigma", "(self.epsilon_t", "(2 * self.epsilon_t"),
    Fault("vp loss: beta_d", A_VP, losses.VPLoss, "sample_sigma", "self.beta_d", "1.01 * self.beta_d"),
    Fault("ve loss: sigma_max", A_VE, losses.VELoss, "sample_sigma", "self.sigma_max /", "99 /"),
    Fault("ve loss: weight", A_VE, losses.VELoss, "weight", "sigma.square()", "sigma"),
    Fault("loss: noise drawn as sigma", E_VP, losses.DenoisingLoss, "__call__", '"noise"', '"sigma"'),
    Fault("vp precond: c_noise", A_VP, precond.VPPrecond, "coefficients", "(self.M - 1)", "self.M"),
    Fault("ve precond: c_noise", A_VE, precond.VEPrecond, "coefficients", "0.5 * sigma", "0.505 * sigma"),
    Fault("edm precond: c_noise", E_VP, precond.EDMPrecond, "coefficients", "sigma.log() / 4", "sigma.log() / 4.04"),
    Fault("edm precond: c_skip", E_VP, precond.EDMPrecond, "coefficients", "2 / total, c_out", "2.02 / total, c_out"),
    Fault("sampler: rho", F_VP, samplers, "edm_sampler", "sigma_max), rho,", "sigma_max), 1.01 * rho,"),
    Fault("sampler: sigma_min", F_VP, samplers, "edm_sampler", "max(sigma_min", "max(1.01 * sigma_min"),
    Fault("sampler: sigma_max", F_VP, samplers, "edm_sampler", "min(sigma_max", "min(0.99 * sigma_max"),
    Fault("sampler: no correction", F_VP, samplers, "edm_sampler", HEUN, "slope + 0 * derivative(x_next, t_next)"),
    Fault("sampler: no last step", F_VP, samplers, "edm_sampler", "x = x_next", "x = x_next if t_next else x"),
    Fault("sampling: labels", F_VP, sampling, "_labels", "seed % label_dim", "(seed + 1) % label_dim"),
    Fault("sampling: quantisation", F_VP, images, "to_uint8", "+ 128", "+ 127.5"),
    Fault("ema: half-life", A_VP, ema.HalfLifeEMA, "beta", "float(self.halflife_nimg)", "1.01 * self.halflife_nimg"),
    Fault("ema: ramp-up", F_VP, ema.HalfLifeEMA, "beta", "* cur_nimg", "* 1.01 * cur_nimg"),
    Fault("ema: weights swapped", F_VP, ema, "update", "1 - beta", "beta"),
    Fault("data: order key", F_VP, orders, "epoch_order", '"data-order", epoch', '"data-order", epoch + 1'),
    Fault("data: x-flips dropped", E_VP, stream.ImageStream, "_set_up", "(2 if view.xflip else 1)", "1"),
    Fault("data: x-flips not done", E_VP, stream.ImageStream, "_compute", "mirrored.any()", "False"),
    Fault("data: range of pixels", F_VP, images, "from_uint8", "127.5 - 1", "128 - 1"),
    Fault("lr: ramp", F_VP, schedules.LinearRampup, "__call__", "min(cur_nimg", "min((cur_nimg + 64)"),
    Fault("adam: eps", F_VP, optimizers.Adam, "create", "eps=self.eps", "eps=2 * self.eps"),
    Fault("adam: beta1", F_VP, optimizers.Adam, "create", "(self.betas[0]", "(0.89"),
    Fault("adam: beta2", F_VP, optimizers.Adam, "create", "self.betas[1])", "0.99)"),
    Fault("step: clipping off", A_VP, step, "training_step", "clip_norm is not None and", "False and"),
    Fault("step: reduction", A_VP, step, "reduction_factor", "1.0 / elements", "2.0 / elements"),
    Fault("step: batch", F_VP, step, "training_step", "loss_scale / batch", "loss_scale / (batch + 1)"),
    Fault("dropout: p", F_VP, layers.UNetBlock, "forward", "dropout(h, self", "dropout(h, 0.9 * self"),
    Fault("dropout: key", F_VP, loop.Trainer, "step", '"dropout", step', '"dropout", step + 1'),
    Fault("augment: p", F_VP, augment.AugmentPipe, "_gated", "* self.p", "* self.p * 1.02"),
    Fault("augment: rotation", F_VP, augment.AugmentPipe, "_warp", "(r, self.aniso_rotate_prob", "(r, 0.55"),
    Fault("augment: scale", F_VP, augment.AugmentPipe, "_warp", "-self.scale_std", "-0.99 * self.scale_std"),
    Fault("network: label scale", F_VP, song.SongUNet, "_embed", "math.sqrt(self.label_dim)", "3.0"),
    Fault("network: skip scale", F_VP, layers.UNetBlock, "_scaled_sum", "mul_(self.skip_scale)", "mul_(0.7)"),
    Fault("network: norm eps", F_VP, layers.GroupNorm, "forward", "self.eps", "2 * self.eps"),
    Fault("network: endpoint", F_VP, layers.PositionalEmbedding, "forward", "int(self.endpoint)", "0"),
    Fault("network: fourier", F_VE, layers.FourierEmbedding, "forward", "2 * math.pi", "6.28"),
    Fault("network: attention", F_VP, layers, "attention", "math.sqrt(head_width)", "head_width"),
    Fault("network: first weights", F_VP, layers.Init, "draw", "math.sqrt(6 /", "math.sqrt(5.9 /"),
    Fault("network: aux scale", F_VE, song.SongUNet, "_encode", "math.sqrt(0.5)", "0.7"),
]
