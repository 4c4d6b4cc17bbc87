"""Samplers of the variance-preserving diffusion: Euler-Maruyama, and both DPM-Solver packages that U-ViT uses.

Their contract is that of `repro.diffusion.samplers`, but for a `VPDenoiser` as network. Times and states are float64.
DPM-Solver is Lu et al. 2022 (arXiv 2206.00927); its data-prediction form Lu et al. 2022 (arXiv 2211.01095).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from repro.diffusion.samplers import Callback, RandnLike
from repro.diffusion.vp_sde import LinearSDE, Schedule, VPDenoiser, expand
from repro.errors import UsageError

Network = Callable[[Tensor, Tensor], Tensor]
"""(x, t) -> the prediction, with t (N,) or (1,) float64."""
ADAPTIVE_TOLERANCE = (0.0078, 0.05)
"""Absolute and relative tolerance of the adaptive mode: the first is two grey levels of [-1, 1]."""


@torch.no_grad()
def euler_maruyama_sampler(
    net: VPDenoiser,
    latents: Tensor,
    class_labels: Tensor | None = None,
    randn_like: RandnLike = torch.randn_like,
    callback: Callback | None = None,
    *,
    num_steps: int = 1000,
    kind: Literal["sde", "ode"] = "sde",
    t_min: float = 1e-3,
) -> Tensor:
    """Euler-Maruyama on the reverse SDE, or Euler on the probability-flow ODE, with `num_steps` network calls.

    Times: 0, then num_steps evenly from t_min to 1. The last interval, from t_min to 0, has no noise. UsageError for a
    discrete schedule.
    """
    process = net.process
    if not isinstance(process, LinearSDE):
        raise UsageError("euler_maruyama_sampler needs continuous time: the schedule 'linear'")
    share = {"sde": 1.0, "ode": 0.5}.get(kind)
    if share is None:
        raise UsageError(f"unknown kind {kind!r}; known: sde, ode")
    inner = torch.linspace(t_min, 1, num_steps, dtype=torch.float64, device="cpu")
    times = [0.0, *inner.tolist()]
    x = latents.to(torch.float64)
    for done, (s, t) in enumerate(reversed(list(itertools.pairwise(times)))):
        now = torch.tensor([t], dtype=torch.float64, device=x.device)
        beta, sigma, h = process.beta(now), process.sigma(now), t - s
        score = -net(x, now, class_labels) / sigma
        x = x + h * beta * (x / 2 + share * score)
        if kind == "sde" and s > 0:
            x = x + (beta * h).sqrt() * randn_like(x)
        if callback is not None:
            callback(done, num_steps)
    return x


@dataclasses.dataclass(frozen=True)
class Solver:
    """The updates of DPM-Solver from time s to time t; both forms have the same structure.

    evaluate: the network's noise prediction, (x, t) -> (N, C, H, W); data: predict x_0 (the second package's form).
    """

    process: Schedule
    evaluate: Network
    data: bool = False

    def prediction(self, x: Tensor, t: Tensor) -> Tensor:
        """eps(x, t), or x_0 from it."""
        noise = self.evaluate(x, t)
        if not self.data:
            return noise
        return (x - expand(self.process.sigma(t), x) * noise) / expand(self.process.alpha(t), x)

    def _coefficients(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor, float]:
        """(factor of x, size of the prediction's part, sign of h) of a step."""
        alpha_s, alpha_t = self.process.alpha(s), self.process.alpha(t)
        sigma_s, sigma_t = self.process.sigma(s), self.process.sigma(t)
        return (sigma_t / sigma_s, alpha_t, -1.0) if self.data else (alpha_t / alpha_s, sigma_t, 1.0)

    def first(self, x: Tensor, s: Tensor, t: Tensor, p: Tensor) -> Tensor:
        """Order 1, from the prediction p at (x, s)."""
        h = self.process.half_log_snr(t) - self.process.half_log_snr(s)
        factor, size, sign = self._coefficients(s, t)
        return expand(factor, x) * x - expand(size * torch.expm1(sign * h), x) * p

    def second(self, x: Tensor, s: Tensor, t: Tensor, p: Tensor, r: Tensor, p1: Tensor) -> Tensor:
        """Order 2, from p and the prediction p1 at share r of the step (in lambda)."""
        h = self.process.half_log_snr(t) - self.process.half_log_snr(s)
        _, size, sign = self._coefficients(s, t)
        return self.first(x, s, t, p) - expand(size * torch.expm1(sign * h) / (2 * r), x) * (p1 - p)

    def third(self, x: Tensor, s: Tensor, t: Tensor, p: Tensor, r2: Tensor, p2: Tensor) -> Tensor:
        """Order 3, from p and the prediction p2 at share r2; also the inner point at r2, from p1 and r2 / r1."""
        h = self.process.half_log_snr(t) - self.process.half_log_snr(s)
        _, size, sign = self._coefficients(s, t)
        correction = size * (torch.expm1(sign * h) / (sign * h) - 1) / r2
        return self.first(x, s, t, p) - expand(correction, x) * (p2 - p)

    def inner(self, x: Tensor, s: Tensor, at: Tensor, p: Tensor, p1: Tensor, ratio: Tensor) -> Tensor:
        """The second inner point of order 3, at time `at`: ratio is r1 / r2."""
        return self.third(x, s, at, p, ratio, p1)

    def between(self, s: Tensor, t: Tensor, share: float) -> Tensor:
        """The time at a share of the step, in lambda."""
        start, end = self.process.half_log_snr(s), self.process.half_log_snr(t)
        return self.process.inverse_lambda(start + share * (end - start))

    def step(self, x: Tensor, times: list[Tensor], p: Tensor | None = None) -> Tensor:
        """One step over times[0] > ... > times[-1], of the order len(times) - 1; those between are its inner points."""
        s, t = times[0], times[-1]
        p = self.prediction(x, s) if p is None else p
        if len(times) == 2:
            return self.first(x, s, t, p)
        start = self.process.half_log_snr(s)
        h = self.process.half_log_snr(t) - start
        r1 = (self.process.half_log_snr(times[1]) - start) / h
        p1 = self.prediction(self.first(x, s, times[1], p), times[1])
        if len(times) == 3:
            return self.second(x, s, t, p, r1, p1)
        r2 = (self.process.half_log_snr(times[2]) - start) / h
        p2 = self.prediction(self.inner(x, s, times[2], p, p1, r1 / r2), times[2])
        return self.third(x, s, t, p, r2, p2)

    def default_times(self, s: Tensor, t: Tensor, order: int) -> list[Tensor]:
        """A step's times with its inner points at equal shares of lambda: 1/2, or 1/3 and 2/3."""
        return [s, *(self.between(s, t, index / order) for index in range(1, order)), t]


def fast_orders(evaluations: int) -> list[int]:
    """Orders of the steps of the "fast" mode: their sum is the number of evaluations."""
    if evaluations < 1:
        raise UsageError(f"a sampler needs 1 evaluation or more, not {evaluations}")
    thirds, rest = divmod(evaluations, 3)
    if rest:
        return [3] * thirds + [rest]
    return [3] * (thirds - 1) + [2, 1]


def boundaries(process: Schedule, start: float, end: float, count: int, spacing: str, device: Any) -> Tensor:
    """count + 1 times from start to end, evenly in `lambda` or in `time`; (count + 1,) float64."""
    times = torch.linspace(start, end, count + 1, dtype=torch.float64, device="cpu")
    if spacing == "lambda":
        ends = process.half_log_snr(times[[0, -1]])
        steps = torch.linspace(float(ends[0]), float(ends[1]), count + 1, dtype=torch.float64, device="cpu")
        times = torch.cat([times[:1], process.inverse_lambda(steps[1:-1]), times[-1:]])
    elif spacing != "time":
        raise UsageError(f"unknown spacing {spacing!r}; known: lambda, time")
    return times.to(device)


@torch.no_grad()
def dpm_solver_sampler(
    net: VPDenoiser,
    latents: Tensor,
    class_labels: Tensor | None = None,
    randn_like: RandnLike = torch.randn_like,
    callback: Callback | None = None,
    *,
    evaluations: int = 50,
    t_end: float = 1e-4,
    method: Literal["fast", "singlestep", "adaptive"] = "fast",
    order: int = 3,
    spacing: Literal["lambda", "time"] = "lambda",
) -> Tensor:
    """DPM-Solver in noise-prediction form, from t = 1 to t_end: U-ViT's samples in pixel space.

    method: `fast` mixes orders so that there are exactly `evaluations` network calls; `singlestep` takes steps of one
    order, and leaves the rest over; `adaptive` (orders 2 and 3) chooses its own number of them. order: of the latter
    two. spacing: of the steps' boundaries.
    """
    solver = Solver(net.process, lambda x, t: net(x, t, class_labels))
    x = latents.to(torch.float64)
    if method == "adaptive":
        return _adaptive(solver, x, t_end, order, callback)
    orders = _orders(method, evaluations, order)
    times = boundaries(net.process, 1.0, t_end, len(orders), spacing, x.device)
    steps = [solver.default_times(s, t, q) for q, s, t in zip(orders, times[:-1, None], times[1:, None], strict=True)]
    return _walk(solver, x, steps, callback)


def _walk(solver: Solver, x: Tensor, steps: list[list[Tensor]], callback: Callback | None) -> Tensor:
    """All steps, each given by its times."""
    for done, times in enumerate(steps):
        x = solver.step(x, times)
        if callback is not None:
            callback(done, len(steps))
    return x


def _orders(method: str, evaluations: int, order: int) -> list[int]:
    if method == "fast":
        return fast_orders(evaluations)
    if method != "singlestep":
        raise UsageError(f"unknown method {method!r}; known: fast, singlestep, adaptive")
    if order not in (1, 2, 3) or evaluations < order:
        raise UsageError(f"singlestep needs an order of 1, 2 or 3, and as many evaluations; not {order}, {evaluations}")
    return [order] * (evaluations // order)


def _adaptive(solver: Solver, x: Tensor, t_end: float, order: int, callback: Callback | None) -> Tensor:
    """Steps whose size follows the difference of two orders that share their evaluations.

    The error is the largest over the batch, so that images depend on the batch: not for scored samples.
    """
    if order not in (2, 3):
        raise UsageError(f"adaptive needs an order of 2 or 3, not {order}")
    process = solver.process
    s, h = torch.ones(1, dtype=torch.float64, device=x.device), 0.05
    end = torch.full_like(s, t_end)
    last = float(process.half_log_snr(end))
    previous, done = x, 0
    while float((s - end).abs().mean()) > 1e-5:
        t = process.inverse_lambda(process.half_log_snr(s) + h)
        low, high = _pair(solver, x, s, t, order)
        absolute, relative = ADAPTIVE_TOLERANCE
        allowed = (relative * torch.maximum(low.abs(), previous.abs())).clamp(min=absolute)
        error = float(((high - low) / allowed).square().flatten(1).mean(1).sqrt().max())
        if error <= 1:
            x, s, previous = high, t, low
            if callback is not None:
                callback(done, done + 1)
            done += 1
        h = min(0.9 * h * error ** (-1 / order) if error > 0 else float("inf"), last - float(process.half_log_snr(s)))
    return x


def _pair(solver: Solver, x: Tensor, s: Tensor, t: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """A step of order - 1 and one of the order."""
    third = torch.full_like(s, 1 / 3)
    p = solver.prediction(x, s)
    if order == 2:
        at = solver.between(s, t, 0.5)
        p1 = solver.prediction(solver.first(x, s, at, p), at)
        return solver.first(x, s, t, p), solver.second(x, s, t, p, torch.full_like(s, 0.5), p1)
    at1, at2 = solver.between(s, t, 1 / 3), solver.between(s, t, 2 / 3)
    p1 = solver.prediction(solver.first(x, s, at1, p), at1)
    p2 = solver.prediction(solver.inner(x, s, at2, p, p1, torch.full_like(s, 0.5)), at2)
    return solver.second(x, s, t, p, third, p1), solver.third(x, s, t, p, 2 * third, p2)


@torch.no_grad()
def dpmpp_sampler(
    net: VPDenoiser,
    latents: Tensor,
    class_labels: Tensor | None = None,
    randn_like: RandnLike = torch.randn_like,
    callback: Callback | None = None,
    *,
    evaluations: int = 50,
    t_end: float = 1e-3,
    guidance: float = 0.0,
    method: Literal["fast", "singlestep"] = "fast",
    order: int = 3,
    spacing: Literal["time", "lambda"] = "time",
    data_prediction: bool = True,
) -> Tensor:
    """The second package, from t = 1 to t_end: U-ViT's latents and its text-conditional samples.

    guidance: g in cond + g (cond - uncond); 0 for none, and each evaluation is then one network call, else two.
    method: `fast` takes `evaluations` even intervals, of which a step spans as many as its order, with the inner
    boundaries as its inner points; `singlestep` takes evaluations // order steps of one order, inner points at equal
    shares of lambda. order: 3, or 2 or 1.
    """
    solver = Solver(net.process, _guided(net, class_labels, guidance), data_prediction)
    x = latents.to(torch.float64)
    if method == "fast":
        orders = _fast_orders_up_to(evaluations, order)
        times = list(boundaries(net.process, 1.0, t_end, evaluations, spacing, x.device)[:, None])
        starts = list(itertools.accumulate(orders, initial=0))
        steps = [times[a : b + 1] for a, b in itertools.pairwise(starts)]
    else:
        orders = _orders(method, evaluations, order)
        ends = boundaries(net.process, 1.0, t_end, len(orders), spacing, x.device)[:, None]
        steps = [solver.default_times(s, t, order) for s, t in itertools.pairwise(ends)]
    return _walk(solver, x, steps, callback)


def _fast_orders_up_to(evaluations: int, order: int) -> list[int]:
    """Orders of the fast mode whose largest is 3, 2 or 1."""
    if order == 3:
        return fast_orders(evaluations)
    if order not in (1, 2) or evaluations < 1:
        raise UsageError(f"fast needs an order of 1, 2 or 3, and 1 evaluation or more; not {order}, {evaluations}")
    steps, rest = divmod(evaluations, order)
    return [order] * steps + [1] * rest


def _guided(net: VPDenoiser, condition: Tensor | None, guidance: float) -> Network:
    if guidance == 0:
        return lambda x, t: net(x, t, condition)
    if condition is None or not net.has_null_class:
        raise UsageError(f"guidance {guidance:g} needs a condition, and a network that knows none; guidance is 0 here")
    both = torch.cat([condition, torch.zeros_like(condition)])

    def evaluate(x: Tensor, t: Tensor) -> Tensor:
        times = t.expand(len(x))
        told, free = net(torch.cat([x, x]), torch.cat([times, times]), both).chunk(2)
        return told + guidance * (told - free)

    return evaluate


def _steps(*, num_steps: int = 1000, **_: Any) -> int:
    return num_steps


def _evaluations(
    *, evaluations: int = 50, method: str = "fast", order: int = 3, guidance: float = 0.0, **_: Any
) -> int:
    """Network calls for one image: guidance takes two an evaluation."""
    used = evaluations // order * order if method == "singlestep" else evaluations
    return used * (1 if guidance == 0 else 2)


euler_maruyama_sampler.UNITS = {"num_steps": "steps"}  # type: ignore[attr-defined]
euler_maruyama_sampler.NFE = _steps  # type: ignore[attr-defined]
dpm_solver_sampler.UNITS = {"evaluations": "steps"}  # type: ignore[attr-defined]
dpm_solver_sampler.NFE = _evaluations  # type: ignore[attr-defined]
dpmpp_sampler.UNITS = {"evaluations": "steps"}  # type: ignore[attr-defined]
dpmpp_sampler.NFE = _evaluations  # type: ignore[attr-defined]
