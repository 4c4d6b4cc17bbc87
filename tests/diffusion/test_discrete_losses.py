"""The hybrid loss: weights, what each term trains, the likelihood by hand, and draws for the whole batch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repro.diffusion import discrete
from repro.diffusion.discrete import Process
from repro.diffusion.discrete_denoiser import DiscreteDenoiser
from repro.diffusion.discrete_losses import (
    HybridLoss,
    discretised_log_likelihood,
    normal_kl,
    training_terms,
)
from repro.diffusion.draws import StepDraws
from repro.errors import UsageError
from repro.models.udit import UDiT
from repro.training.step import MicroBatch, training_step
from repro.training.weights import FlatWeights


def batch(process: Process, n: int = 4, channels: int = 2) -> dict[str, Tensor]:
    torch.manual_seed(0)
    x0, noise = torch.rand(n, channels, 3, 3) * 2 - 1, torch.randn(n, channels, 3, 3)
    t = torch.tensor([0, 1, len(process) // 2, len(process) - 1])
    x_t = discrete.q_sample(process, x0, t, noise)
    return {"output": torch.randn(n, 2 * channels, 3, 3), "x0": x0, "x_t": x_t, "t": t, "noise": noise}


def test_kl_by_hand() -> None:
    mean, log = torch.tensor([0.3]), torch.tensor([-1.0])
    assert normal_kl(mean, log, mean, log).item() == 0
    found = normal_kl(torch.tensor(1.0), torch.tensor(0.0), torch.tensor(0.0), torch.tensor(math.log(4.0)))
    assert found.item() == pytest.approx(math.log(2) + (1 + 1) / 8 - 0.5)


def test_likelihoods_of_all_levels_are_probabilities() -> None:
    levels = torch.arange(256) / 127.5 - 1
    for mean, log_sd in ((0.1, -3.0), (-0.9, -1.0), (1.5, 0.0)):
        found = discretised_log_likelihood(levels, torch.tensor(mean), torch.tensor(log_sd)).exp()
        assert float(found.sum()) == pytest.approx(1, abs=1e-4)


def test_likelihood_is_near_the_normal_distributions() -> None:
    x, sd = torch.tensor([0.2]), 0.1
    found = discretised_log_likelihood(x, torch.tensor([0.15]), torch.tensor([math.log(sd)]))
    density = math.exp(-0.5 * (0.05 / sd) ** 2) / (sd * math.sqrt(2 * math.pi))
    assert found.item() == pytest.approx(math.log(density * 2 / 255), abs=0.01)
    assert discretised_log_likelihood(x, torch.tensor([9.0]), torch.tensor([-5.0])).item() == pytest.approx(
        math.log(1e-12)
    )


def test_the_loss_is_both_terms_with_weight_one() -> None:
    process = Process()
    terms = training_terms(process, **batch(process))
    assert terms.mse is not None and terms.vb is not None
    torch.testing.assert_close(terms.loss, terms.mse + terms.vb)
    kl = training_terms(process, **batch(process), kind="kl")
    torch.testing.assert_close(kl.loss, terms.vb)
    torch.testing.assert_close(training_terms(process, **batch(process), kind="rescaled_kl").loss, 1000 * kl.loss)


def test_the_variational_term_is_in_bits() -> None:
    """A perfect prediction and the posterior's variance leave nothing for t > 0 but the variance's own divergence."""
    process = Process()
    given = batch(process)
    epsilon, v = given["noise"], torch.full_like(given["noise"], 1.0)
    terms = training_terms(process, **{**given, "output": torch.cat([epsilon, v], 1)})
    t = 500
    low, high = float(process.posterior_log_variance[t]), float(process.beta[t].log())
    assert terms.vb is not None
    expected = 0.5 * (-1 + high - low + math.exp(low - high)) / math.log(2)
    assert terms.vb[2].item() == pytest.approx(expected, rel=1e-2, abs=1e-6)


@pytest.mark.parametrize("steps, factor", [("", 1.0), ("250", 0.25)])
def test_rescaling_follows_the_number_of_steps(steps: str, factor: float) -> None:
    process = Process(steps=steps)
    plain = training_terms(process, **batch(process))
    rescaled = training_terms(process, **batch(process), kind="rescaled_mse")
    assert plain.vb is not None and rescaled.vb is not None
    torch.testing.assert_close(rescaled.vb, factor * plain.vb)


@pytest.mark.parametrize("kind, both", [("mse", False), ("rescaled_mse", False), ("kl", True)])
def test_the_variational_term_trains_the_variance_alone(kind: Any, both: bool) -> None:
    process = Process()
    given = batch(process)
    output = given.pop("output").requires_grad_()
    terms = training_terms(process, output=output, **given, kind=kind)
    assert terms.vb is not None or kind == "kl"
    term = terms.loss if terms.vb is None else terms.vb
    (gradient,) = torch.autograd.grad(term.sum(), output)
    assert bool(gradient[:, :2].any()) == both and gradient[:, 2:].any()


def test_fixed_variance_and_prediction_of_images() -> None:
    process = Process()
    given = batch(process)
    output = given.pop("output")[:, :2]
    found = training_terms(process, output=output, **given, variance="fixed_large", prediction="x0")
    assert found.vb is None
    torch.testing.assert_close(found.loss, (output - given["x0"]).square().flatten(1).mean(1))


def test_an_unknown_loss_is_named() -> None:
    with pytest.raises(UsageError, match="unknown loss 'vlb'; known: mse"):
        training_terms(Process(), **batch(Process()), kind="vlb")  # type: ignore[arg-type]


def denoiser(**changes: Any) -> DiscreteDenoiser:
    torch.manual_seed(1)
    settings = {"img_resolution": 8, "in_channels": 1, "label_dim": 3, "depth": [1] * 5, "num_heads": 1}
    net = DiscreteDenoiser(UDiT(**{**settings, "head_channels": 8, **changes}))
    for parameter in net.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return net


def test_micro_batches_and_processes_draw_the_same() -> None:
    net, loss = denoiser(), HybridLoss()
    images, labels = torch.rand(6, 1, 8, 8), torch.eye(3).repeat(2, 1)
    whole = loss(net, images, labels, draws=StepDraws(5, 7, 6))
    parts = [loss(net, images[i : i + 2], labels[i : i + 2], draws=StepDraws(5, 7, 6, i, 2)) for i in (0, 2, 4)]
    assert whole.shape == (6,)
    torch.testing.assert_close(torch.cat(parts), whole)


def test_labels_are_dropped_a_tenth_of_the_time_for_each_embedder() -> None:
    seen: list[Tensor] = []

    class Spy(nn.Module):
        img_resolution, in_channels, label_dim, learn_sigma, class_dropout, label_draws = 1, 1, 3, True, 0.1, 3

        def forward(self, x: Tensor, t: Tensor, y: Tensor, drop: Tensor) -> Tensor:
            seen.append(drop)
            assert set(t.tolist()) <= set(range(1000)) and len(set(t.tolist())) > 500
            return torch.zeros(len(x), 2, 1, 1)

    images, labels = torch.zeros(4000, 1, 1, 1), torch.eye(3)[torch.arange(4000) % 3]
    HybridLoss()(DiscreteDenoiser(Spy()), images, labels, draws=StepDraws(0, 0, 4000))
    (drop,) = seen
    assert drop.shape == (4000, 3)
    assert drop.float().mean(0).tolist() == pytest.approx([0.1] * 3, abs=0.02)
    assert drop.all(1).float().mean().item() < 0.01, "each embedder has a draw of its own"


def test_no_labels_are_dropped_without_dropout() -> None:
    net = denoiser(class_dropout=0.0)
    images, labels = torch.rand(2, 1, 8, 8), torch.eye(3)[:2]
    assert HybridLoss()(net, images, labels, draws=StepDraws(0, 0, 2)).shape == (2,)


def test_augmentation_is_refused() -> None:
    with pytest.raises(UsageError, match="HybridLoss has no augmentation"):
        HybridLoss()(denoiser(), torch.zeros(1, 1, 8, 8), augment=object(), draws=StepDraws(0, 0, 1))


def test_the_loops_step_minimises_the_mean_over_the_batch() -> None:
    """`training_step` divides the sum of the errors by the batch: with one number an image that is their mean."""
    net, loss = denoiser(), HybridLoss()
    images, labels = torch.rand(4, 1, 8, 8), torch.eye(3)[torch.arange(4) % 3]
    mean = loss(net, images, labels, draws=StepDraws(5, 7, 4)).mean()
    torch.autograd.backward(mean)
    expected = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    weights = FlatWeights(net)
    optimizer = torch.optim.SGD([weights.vector], lr=0.0)
    parts = [MicroBatch(images[i : i + 2], labels[i : i + 2], StepDraws(5, 7, 4, i, 2)) for i in (0, 2)]
    result = training_step(net, loss, weights, optimizer, parts, lr=0.0, batch=4)
    assert sum(result.parts) / 2 == pytest.approx(mean.item(), rel=1e-5)
    assert weights.vector.grad is not None
    torch.testing.assert_close(weights.vector.grad, expected, rtol=1e-4, atol=1e-6)
