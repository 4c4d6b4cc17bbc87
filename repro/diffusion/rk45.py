"""The black-box Runge-Kutta sampler of Karras et al. 2022 (Table 3, last row): scipy's RK45, image by image.

Every image has its own time, step size and error control, as if `scipy.integrate.solve_ivp(method="RK45")` solved it
alone (the tests hold it against that); the network is called once for all images that are not at their end.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from repro.diffusion.samplers import Callback, Denoiser, RandnLike

Slope = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(which problems, their times (n,), their states (n, d)) -> slopes (n, d)."""

# Hairer, Norsett, Wanner 1993, section II.4: how an error moves the step. The values are scipy's.
SAFETY, SMALLEST_FACTOR, LARGEST_FACTOR = 0.9, 0.2, 10.0
ERROR_EXPONENT = -1 / 5


@torch.no_grad()
def rk45_sampler(
    net: Denoiser,
    latents: Tensor,
    class_labels: Tensor | None = None,
    randn_like: RandnLike = torch.randn_like,
    callback: Callback | None = None,
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rtol: float = 1e-3,
    atol: float = 1e-3,
) -> Tensor:
    """Solve dx/dsigma = (x - D(x; sigma)) / sigma from sigma_max to sigma_min by an adaptive solver, then step to 0.

    Contract as in `repro.diffusion.samplers`; no noise is drawn. The number of denoiser calls differs from image to
    image.

    sigma_min, sigma_max: limited to what net supports. rtol, atol: scipy's tolerances of the local error of a step.
    """
    low, high = max(sigma_min, net.sigma_min), min(sigma_max, net.sigma_max)
    shape = latents.shape

    def denoise(images: Tensor, sigma: Tensor, x: Tensor) -> Tensor:
        labels = None if class_labels is None else class_labels[images]
        return net(x.reshape(-1, *shape[1:]), sigma, labels).to(torch.float64).flatten(1)

    def slope(images: Tensor, sigma: Tensor, x: Tensor) -> Tensor:
        return (x - denoise(images, sigma, x)) / sigma[:, None]

    x = solve((latents.to(torch.float64) * high).flatten(1), (high, low), rtol, atol, slope, callback)
    everyone = torch.arange(shape[0], device=latents.device)
    # The last step, to sigma = 0, is Euler's, whose end is the denoised image.
    return denoise(everyone, torch.full_like(x[:, 0], low), x).reshape(shape)


rk45_sampler.ADAPTIVE = True  # type: ignore[attr-defined]


def solve(
    start: Tensor, span: tuple[float, float], rtol: float, atol: float, slope: Slope, callback: Callback | None = None
) -> Tensor:
    """The ends of many initial value problems, each with a step size of its own (Dormand and Prince's pair 5(4)).

    Args:
        start: (N, d) float64, one state a problem.
        span: first and last time, of all.
        callback: called as (problems at their end - 1, N) whenever more are there.

    Raises:
        ArithmeticError: a step became too small, or a state is not finite; names the problem.
    """
    device = start.device
    time, state = torch.full_like(start[:, 0], span[0]), start.clone()
    where = torch.arange(len(start), device=device)
    rates = slope(where, time.clone(), state.clone())
    steps = _first_steps(where, time.clone(), state.clone(), rates, span, rtol, atol, slope)
    retried = torch.zeros_like(where, dtype=torch.bool)
    sign, ended = (1.0 if span[1] >= span[0] else -1.0), 0
    while len(where):
        least = 10 * (torch.nextafter(time[where], torch.full_like(time[where], sign * torch.inf)) - time[where]).abs()
        steps[where] = torch.where(retried[where], steps[where], steps[where].maximum(least))
        _refuse(where, steps[where] < least, "its step became too small")
        t, y = time[where], state[where]
        next_t = torch.where(
            sign * (t + sign * steps[where] - span[1]) > 0, torch.full_like(t, span[1]), t + sign * steps[where]
        )
        h = next_t - t
        next_y, next_rate, error = _step(where, t, y, rates[where], h, slope)
        norm = _rms(error / (atol + torch.maximum(y.abs(), next_y.abs()) * rtol))
        _refuse(where, ~(norm.isfinite() & next_y.isfinite().all(dim=1)), "its state is not finite")
        accepted = norm < 1
        factor = SAFETY * norm.clamp(min=1e-300) ** ERROR_EXPONENT
        grown = factor.clamp(max=LARGEST_FACTOR)
        grown = torch.where(retried[where], grown.clamp(max=1.0), grown)
        steps[where] = h.abs() * torch.where(accepted, grown, factor.clamp(min=SMALLEST_FACTOR))
        retried[where] = ~accepted
        moved = where[accepted]
        time[moved], state[moved], rates[moved] = next_t[accepted], next_y[accepted], next_rate[accepted]
        where = where[time[where] != span[1]]
        if callback is not None and len(start) - len(where) > ended:
            ended = len(start) - len(where)
            callback(ended - 1, len(start))
    return state


def _step(where: Tensor, t: Tensor, y: Tensor, rate: Tensor, h: Tensor, slope: Slope) -> tuple[Tensor, Tensor, Tensor]:
    """One step of all problems: (next state, its slope, estimated error), with the coefficients that scipy has."""
    from scipy.integrate import RK45  # heavy

    a, b, c, e = (torch.from_numpy(table).to(y) for table in (RK45.A, RK45.B, RK45.C, RK45.E))
    stages = [rate]
    for row, node in zip(a[1:], c[1:], strict=True):
        change = torch.einsum("s,snd->nd", row[: len(stages)], torch.stack(stages))
        stages.append(slope(where, t + node * h, y + change * h[:, None]))
    next_y = y + h[:, None] * torch.einsum("s,snd->nd", b, torch.stack(stages))
    stages.append(slope(where, t + h, next_y))
    return next_y, stages[-1], torch.einsum("s,snd->nd", e, torch.stack(stages)) * h[:, None]


def _first_steps(
    where: Tensor,
    t: Tensor,
    y: Tensor,
    rate: Tensor,
    span: tuple[float, float],
    rtol: float,
    atol: float,
    slope: Slope,
) -> Tensor:
    """Sizes of the first steps, (N,) (Hairer, Norsett, Wanner 1993, section II.4, as scipy has it)."""
    length = abs(span[1] - span[0])
    sign = 1.0 if span[1] >= span[0] else -1.0
    scale = atol + y.abs() * rtol
    d0, d1 = _rms(y / scale), _rms(rate / scale)
    h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), torch.full_like(d0, 1e-6), 0.01 * d0 / d1).clamp(max=length)
    probe = slope(where, t + sign * h0, y + (sign * h0)[:, None] * rate)
    d2 = _rms((probe - rate) / scale) / h0
    h1 = torch.where(
        (d1 <= 1e-15) & (d2 <= 1e-15), (h0 * 1e-3).clamp(min=1e-6), (0.01 / torch.maximum(d1, d2)) ** (1 / 5)
    )
    return torch.minimum(100 * h0, h1).clamp(max=length)


def _rms(x: Tensor) -> Tensor:
    """Root mean square of each row: (n, d) -> (n,)."""
    return x.square().mean(dim=1).sqrt()


def _refuse(where: Tensor, wrong: Tensor, why: str) -> None:
    if bool(wrong.any()):
        raise ArithmeticError(f"RK45 failed for image {int(where[wrong][0])}: {why}")
