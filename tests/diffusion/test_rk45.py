"""The adaptive sampler: scipy's solver for every image by itself, one network call for all that wait."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import RK45, solve_ivp
from torch import Tensor

from repro.diffusion.rk45 import rk45_sampler, solve_together
from repro.diffusion.samplers import count_nfe, is_adaptive

SD = 0.5


class Exact:
    """Exact denoiser of N(mean, SD^2), the mean from the label; remembers what it was called with."""

    sigma_min, sigma_max = 0.0, math.inf

    def __init__(self) -> None:
        self.calls: list[Tensor] = []

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return sigma

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        self.calls.append(sigma)
        s = sigma.reshape(-1, 1, 1, 1)
        mean = 0.0 if class_labels is None else class_labels.argmax(1).double().reshape(-1, 1, 1, 1)
        return (SD**2 * x + s**2 * mean) / (SD**2 + s**2)


def noise(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 1, 3, 2, generator=torch.Generator().manual_seed(seed))


def test_it_solves_the_ode() -> None:
    """x(sigma) = x(80) sqrt((SD^2 + sigma^2) / (SD^2 + 80^2)); the last step denoises what is left of sigma."""
    z, low = noise(5), 0.002
    expected = z.double() * 80 * math.sqrt((SD**2 + low**2) / (SD**2 + 80**2)) * SD**2 / (SD**2 + low**2)
    found = rk45_sampler(Exact(), z, rtol=1e-8, atol=1e-8)
    assert found.dtype == torch.float64
    assert torch.allclose(found, expected, atol=1e-5)


def test_each_image_is_what_scipy_gives_for_it_alone() -> None:
    z = noise(4)
    found = rk45_sampler(Exact(), z, sigma_min=0.02, sigma_max=10.0, rtol=1e-3, atol=1e-3)
    for image, start in zip(found, z.double(), strict=True):
        alone = solve_ivp(
            lambda s, x: (x - SD**2 * x / (SD**2 + s**2)) / s,
            (10.0, 0.02), (start * 10).flatten().numpy(), method="RK45", rtol=1e-3, atol=1e-3,
        ).y[:, -1]  # fmt: skip
        assert np.allclose(image.flatten(), alone * SD**2 / (SD**2 + 0.02**2), rtol=1e-12, atol=1e-12)


def test_an_image_depends_on_nothing_but_itself() -> None:
    z = noise(6)
    z[2] *= 100  # needs other steps than the rest
    whole = rk45_sampler(Exact(), z)
    for part in ([2], [5, 2], [0, 1, 3]):
        assert torch.equal(rk45_sampler(Exact(), z[part]), whole[part])


def test_all_that_wait_are_answered_by_one_call() -> None:
    net = Exact()
    z = noise(20)
    z[0] *= 1e4
    rk45_sampler(net, z)
    sizes = [len(sigma) for sigma in net.calls]
    assert sizes[0] == 20 and sizes[-1] == 20  # the first derivative and the last denoising are everyone's
    assert sum(sizes) > 5 * len(sizes)  # far fewer calls than one an image


def test_labels_stay_with_their_image() -> None:
    labels = torch.eye(3)[[2, 0, 1, 2]]
    found = rk45_sampler(Exact(), torch.zeros(4, 1, 2, 2), labels)
    means = found.mean(dim=(1, 2, 3))
    assert torch.allclose(means, torch.tensor([2.0, 0.0, 1.0, 2.0], dtype=torch.float64), atol=0.05)


def test_the_network_limits_the_range() -> None:
    net = Exact()
    net.sigma_min, net.sigma_max = 0.1, 50.0  # type: ignore[misc]
    rk45_sampler(net, noise(2))
    assert float(net.calls[0].max()) == 50.0 and float(net.calls[-1].min()) == 0.1


def test_nothing_is_drawn_and_progress_ends_at_the_end() -> None:
    seen: list[tuple[int, int]] = []

    def forbidden(x: Tensor) -> Tensor:
        raise AssertionError("no noise is drawn")

    rk45_sampler(Exact(), noise(7), None, forbidden, lambda i, total: seen.append((i, total)))
    assert seen[-1] == (6, 7) and [i for i, _ in seen] == sorted(i for i, _ in seen)


def alive() -> int:
    return threading.active_count()


def failing(error: Exception) -> Callable[..., Tensor]:
    class Failing(Exact):
        def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
            if len(self.calls) == 5:
                raise error
            return super().__call__(x, sigma, class_labels)

    return Failing()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory")])
def test_an_error_of_the_network_ends_every_solver(error: Exception) -> None:
    before = alive()
    with pytest.raises(type(error)):
        rk45_sampler(failing(error), noise(9))  # type: ignore[arg-type]
    assert alive() == before


def test_a_stop_between_steps_ends_every_solver() -> None:
    before = alive()

    def stop(i: int, total: int) -> None:
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        rk45_sampler(Exact(), noise(3), callback=stop)
    assert alive() == before


def test_what_is_not_finite_is_an_error() -> None:
    class Broken(Exact):
        def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
            return super().__call__(x, sigma) * torch.where(sigma < 1, math.nan, 1.0).reshape(-1, 1, 1, 1)

    before = alive()
    with pytest.raises(ArithmeticError, match="RK45 failed for image"):
        rk45_sampler(Broken(), noise(2))
    assert alive() == before


@settings(max_examples=20, deadline=None)
@given(rates=st.lists(st.floats(-3, 3), min_size=1, max_size=6))
def test_many_problems_at_once_are_each_scipy_s(rates: list[float]) -> None:
    ends = solve_together(
        [np.array([1.0])] * len(rates), (0.0, 1.0), 1e-6, 1e-6,
        lambda asked: [rates[one.image] * one.x for one in asked],
    )  # fmt: skip
    for rate, end in zip(rates, ends, strict=True):
        solver = RK45(lambda t, x, rate=rate: rate * x, 0.0, np.array([1.0]), 1.0, rtol=1e-6, atol=1e-6)
        while solver.status == "running":
            solver.step()
        assert end == solver.y


def test_tolerances_decide_the_number_of_calls() -> None:
    def calls(tolerance: float) -> int:
        net = Exact()
        rk45_sampler(net, noise(3), rtol=tolerance, atol=tolerance)
        return sum(len(sigma) for sigma in net.calls)

    assert 3 * 10 < calls(1e-2) < calls(1e-6)


def test_it_is_known_as_adaptive() -> None:
    import functools

    from repro.diffusion.samplers import edm_sampler

    bound = functools.partial(rk45_sampler, rtol=1e-2)
    assert is_adaptive(bound) and count_nfe(bound) > 10
    assert not is_adaptive(functools.partial(edm_sampler, num_steps=3))
