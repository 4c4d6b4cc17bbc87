"""Golden cases of losses, of the training step and of the averages of the weights."""

from __future__ import annotations

from typing import Any

import torch
from harness import Case, RecordedDraws, Runner
from torch import Tensor, nn

from repro.diffusion.images import from_uint8
from repro.diffusion.losses import DenoisingLoss, EDMLoss, VELoss, VPLoss
from repro.training import ema
from repro.training.augment import AugmentPipe
from repro.training.ema import HalfLifeEMA
from repro.training.optimizers import Adam
from repro.training.schedules import LinearRampup
from repro.training.step import MicroBatch, training_step
from repro.training.weights import FlatWeights

LOSSES: dict[str, type[DenoisingLoss]] = {"VPLoss": VPLoss, "VELoss": VELoss, "EDMLoss": EDMLoss}


def loss_draws(case: Case) -> RecordedDraws:
    """The recorded draws: noise level, augmentation, noise."""
    entries: list[tuple[str, str | None, Tensor]] = []
    for item in case.meta["draw_order"]:
        name, kind = (item, None) if isinstance(item, str) else item[:2]
        purpose = "augment" if name.startswith("draw_aug") else name.removeprefix("draw_")
        entries.append((purpose, kind, case.input(name)))
    return RecordedDraws(entries)


def run_loss(case: Case) -> None:
    net = case.network()
    seen: dict[str, Any] = {}

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        seen.update(noisy=args[0], sigma=args[1], D=output, **kwargs)

    net.register_forward_hook(hook, with_kwargs=True)
    augment = AugmentPipe(**case.meta["augment"]) if case.meta["augment"] else None
    draws = loss_draws(case)
    loss = LOSSES[case.meta["name"]](**case.config)
    images = case.input("images")
    error = loss(net, images, case.optional("labels"), augment=augment, draws=draws)
    draws.finish()
    total = error.sum() / len(images)
    torch.autograd.backward(total)
    for name in ("noisy", "sigma", "D"):
        case.check(name, seen[name])
    case.check("loss", error)
    case.check("total", total)
    if augment is not None:
        case.check("augment_labels", seen["augment_labels"])
    check_gradients(case, net)


def check_gradients(case: Case, net: nn.Module) -> None:
    gradients = {name: p.grad for name, p in net.named_parameters()}
    # A layer that takes no part (augmentation labels not given) has no gradient: its norm is 0.
    norms = [0.0 if grad is None else float(grad.double().norm()) for grad in gradients.values()]
    case.check("grad_norms", torch.tensor(norms, dtype=torch.float64))
    for name in sorted(case.outputs):
        if name.startswith("grad/"):
            grad = gradients[name.removeprefix("grad/")]
            assert grad is not None
            case.check(name, grad)


def run_training_loop(case: Case) -> None:
    """Full iterations (EDM specification, section 8.2): compared are losses, rates and changes of weights and EMA."""
    config = case.meta["config"]
    net = case.network().train()
    parameters = dict(net.named_parameters())
    start = {name: p.detach().clone() for name, p in parameters.items()}
    weights = FlatWeights(net)
    averaged = weights.vector.detach().clone()
    average = HalfLifeEMA(config["ema_halflife_kimg"] * 1000, config["ema_rampup_ratio"])
    rate = LinearRampup(config["lr"], config["lr_rampup_kimg"] * 1000)
    optimizer = Adam().create(weights.vector)
    batch, rounds = config["batch"], config["accumulation_rounds"]
    losses: list[float] = []
    rates, betas = [], []
    for step in range(config["steps"]):
        nimg = config["start_nimg"] + step * batch
        rates.append(rate(nimg))
        betas.append(average.beta(nimg, config["batch_for_ema"]))
        result = training_step(
            net, EDMLoss(), weights, optimizer, micro_batches(case, step, batch // rounds),
            lr=rates[-1], batch=batch, loss_scale=config["loss_scaling"],
        )  # fmt: skip
        losses += result.parts
        ema.update(averaged, weights.vector, betas[-1])
    averages = dict(zip(parameters, weights.split(averaged), strict=True))
    case.check("loss_mean", torch.tensor(losses))
    case.check("lr", torch.tensor(rates, dtype=torch.float64), tolerance=1e-6)
    case.check("beta", torch.tensor(betas, dtype=torch.float64), tolerance=1e-6)
    for name in sorted(case.outputs):
        which, _, key = name.partition("/")
        if which in ("net_delta", "ema_delta"):
            now = parameters[key].detach() if which == "net_delta" else averages[key]
            case.check(name, now - start[key])


def micro_batches(case: Case, step: int, size: int) -> list[MicroBatch]:
    images, labels = case.input("images")[step], case.input("labels")[step]
    sigma, noise = case.input("draw_sigma")[step], case.input("draw_noise")[step]
    parts = []
    for start in range(0, len(images), size):
        part = slice(start, start + size)
        draws = RecordedDraws([("sigma", "randn", sigma[part]), ("noise", "randn", noise[part])])
        parts.append(MicroBatch(from_uint8(images[part]), labels[part], draws))
    return parts


def run_ema_and_rate(case: Case) -> None:
    config = case.meta["config"]
    average = HalfLifeEMA(config["ema_halflife_kimg"] * 1000, config["ema_rampup_ratio"])
    rate = LinearRampup(config["lr"], config["lr_rampup_kimg"] * 1000)
    counts = case.input("cur_nimg").tolist()
    case.check("one_minus_beta", torch.tensor([1 - average.beta(n, config["batch"]) for n in counts]))
    case.check("lr", torch.tensor([rate(n) for n in counts]))


RUNNERS: dict[tuple[str, str], Runner] = {
    ("loss", "VPLoss"): run_loss,
    ("loss", "VELoss"): run_loss,
    ("loss", "EDMLoss"): run_loss,
    ("loss", "training_loop"): run_training_loop,
    ("ema", "training_loop EMA and learning-rate ramp"): run_ema_and_rate,
}
