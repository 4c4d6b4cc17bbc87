"""The black-box Runge-Kutta sampler of Karras et al. 2022 (Table 3, last row): scipy's RK45, one solver an image."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from repro.diffusion.samplers import Callback, Denoiser, RandnLike

State = npt.NDArray[np.float64]


class _Asked(NamedTuple):
    """A solver wants the derivative at x (flat) and sigma; it waits for the answer."""

    image: int
    sigma: float
    x: State


class _Ended(NamedTuple):
    """A solver is done: x (flat) at sigma_min, or the error that ended it."""

    image: int
    x: State | None
    error: BaseException | None


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

    Contract as in `repro.diffusion.samplers`; no noise is drawn. Every image has a solver and an error control of its
    own, so that it depends on its seed alone: the solvers run in threads, and whenever all of them wait for a
    derivative the network is called once for all. The number of denoiser calls differs from image to image.

    sigma_min, sigma_max: limited to what net supports. rtol, atol: scipy's tolerances of the local error of a step.
    """
    low, high = max(sigma_min, net.sigma_min), min(sigma_max, net.sigma_max)
    shape, device = latents.shape, latents.device

    def denoise(x: Tensor, sigma: Tensor, images: Tensor) -> Tensor:
        labels = None if class_labels is None else class_labels[images]
        return net(x, sigma, labels).to(torch.float64)

    def derivative(asked: list[_Asked]) -> list[State]:
        x = torch.from_numpy(np.stack([one.x for one in asked])).to(device).reshape(-1, *shape[1:])
        sigma = torch.tensor([one.sigma for one in asked], dtype=torch.float64, device=device)
        images = torch.tensor([one.image for one in asked], device=device)
        slope = (x - denoise(x, sigma, images)) / sigma.reshape(-1, *[1] * (x.ndim - 1))
        return list(slope.flatten(1).cpu().numpy())

    start = (latents.to(torch.float64) * high).flatten(1).cpu().numpy()
    ends = solve_together(list(start), (high, low), rtol, atol, derivative, callback)
    x = torch.from_numpy(np.stack(ends)).to(device).reshape(shape)
    # The last step, to sigma = 0, is Euler's, whose end is the denoised image.
    return denoise(x, torch.full((shape[0],), low, dtype=torch.float64, device=device), torch.arange(shape[0]))


rk45_sampler.ADAPTIVE = True  # type: ignore[attr-defined]


def solve_together(
    starts: list[State],
    span: tuple[float, float],
    rtol: float,
    atol: float,
    derivative: Callable[[list[_Asked]], list[State]],
    callback: Callback | None = None,
) -> list[State]:
    """Solve many initial value problems, each with step sizes of its own, calling `derivative` for all at once.

    Args:
        starts: one state (flat) a problem.
        span: first and last value of the variable.
        derivative: called with what the waiting solvers ask for, ordered by image; returns as many slopes.
        callback: called as (problems ended - 1, problems) whenever more have ended.

    Returns:
        the last state of each problem.

    Raises:
        ArithmeticError: a solver gave up (its step became too small), or a state is not finite.
        Exception: what `derivative` or `callback` raised; the solvers are ended first.
    """
    inbox: queue.SimpleQueue[_Asked | _Ended] = queue.SimpleQueue()
    answers: list[queue.SimpleQueue[State | None]] = [queue.SimpleQueue() for _ in starts]
    threads = [
        threading.Thread(target=_solve, args=(image, start, span, rtol, atol, inbox, answers[image]), daemon=True)
        for image, start in enumerate(starts)
    ]
    for thread in threads:
        thread.start()
    ends: dict[int, State] = {}
    waiting: list[_Asked] = []
    try:
        running = len(starts)
        while running:
            wave = [inbox.get() for _ in range(running)]
            waiting = sorted((one for one in wave if isinstance(one, _Asked)), key=lambda one: one.image)
            for one in wave:
                if isinstance(one, _Ended):
                    if one.x is None:
                        raise ArithmeticError(f"RK45 failed for image {one.image}: {one.error}") from one.error
                    ends[one.image] = one.x
            if callback is not None and len(waiting) < running:
                callback(len(ends) - 1, len(starts))
            running = len(waiting)
            if waiting:
                for one, slope in zip(waiting, derivative(waiting), strict=True):
                    answers[one.image].put(slope)
    finally:
        for one_answer in answers:
            one_answer.put(None)  # ends a solver that still waits
        for thread in threads:
            thread.join()
    return [ends[image] for image in range(len(starts))]


class _Stopped(Exception):
    """The others were stopped: this solver ends too."""


def _solve(
    image: int,
    start: State,
    span: tuple[float, float],
    rtol: float,
    atol: float,
    inbox: queue.SimpleQueue[Any],
    answer: queue.SimpleQueue[State | None],
) -> None:
    """Body of a thread: one problem by scipy, every derivative asked of the thread that calls the network."""
    from scipy.integrate import RK45  # heavy

    def slope(sigma: float, x: State) -> State:
        inbox.put(_Asked(image, float(sigma), x))
        found = answer.get()
        if found is None:
            raise _Stopped
        return found

    try:
        solver = RK45(slope, span[0], start, span[1], rtol=rtol, atol=atol)
        while solver.status == "running":
            message = solver.step()
            if solver.status == "failed" or not np.isfinite(solver.y).all():
                raise ArithmeticError(message or "its state is not finite")
    except _Stopped:
        return
    except BaseException as error:
        inbox.put(_Ended(image, None, error))
        return
    inbox.put(_Ended(image, solver.y, None))
