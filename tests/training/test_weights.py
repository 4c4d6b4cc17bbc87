"""Weights as one vector."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from repro.training.weights import FlatWeights


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 2))
    net[0].bias.requires_grad_(False)
    return net


def test_the_vector_holds_the_trainable_parameters_in_order_and_moves_them() -> None:
    net = network()
    before = [p.detach().clone() for p in net.parameters() if p.requires_grad]
    weights = FlatWeights(net)
    assert torch.equal(weights.vector, torch.cat([p.flatten() for p in before]))
    with torch.no_grad():
        weights.vector.add_(1)
    assert all(torch.equal(now, old + 1) for now, old in zip(weights.parameters, before, strict=True))
    assert [p.data_ptr() for p in net.parameters() if p.requires_grad] == [p.data_ptr() for p in weights.parameters]


def test_loading_a_state_moves_the_vector() -> None:
    net = network()
    weights = FlatWeights(net)
    net.load_state_dict({name: torch.full_like(value, 2) for name, value in net.state_dict().items()})
    assert torch.equal(weights.vector, torch.full_like(weights.vector, 2))


def test_the_gathered_gradient_is_every_gradient_in_order_and_zero_for_what_took_no_part() -> None:
    net = network()
    weights = FlatWeights(net)
    net[0](torch.ones(1, 1, 4, 4)).sum().backward()
    gradient = weights.gather_gradient()
    assert weights.vector.grad is gradient
    kernel, matrix, bias = weights.split(gradient)
    assert torch.equal(kernel, torch.full_like(kernel, 4)), "four positions of a 3x3 kernel on a 4x4 image of ones"
    assert not matrix.any() and not bias.any()
    weights.clear_gradient()
    assert weights.vector.grad is None and all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_an_optimiser_of_the_vector_equals_one_of_the_parameters(name: str) -> None:
    ends = []
    for flat in (False, True):
        net = network()
        weights = FlatWeights(net)
        optimizer = getattr(torch.optim, name)([weights.vector] if flat else weights.parameters, lr=0.1)
        for step in range(3):
            weights.clear_gradient()
            net(torch.full((2, 1, 4, 4), step - 1.0)).square().sum().backward()
            weights.gather_gradient()
            optimizer.step()
        ends.append(weights.vector.detach().clone())
    assert torch.allclose(*ends, rtol=1e-6, atol=1e-7)
