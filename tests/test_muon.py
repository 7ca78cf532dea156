"""Tests of the optimiser that orthogonalises the updates of filters."""

import pytest
import torch
from torch import Tensor, nn

from kit.training import Muon, orthogonalize

BETAS = (0.9, 0.99)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6**2, 1))


def take_steps(optimizer: torch.optim.Optimizer, model: nn.Module, count: int) -> list[Tensor]:
    """Take steps with the gradients of fixed images, and return those of the filters."""
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    gradients = []
    for _ in range(count):
        optimizer.zero_grad()
        model(images).square().mean().backward()
        gradients.append(next(model.parameters()).grad.clone())  # type: ignore[union-attr]
        optimizer.step()
    return gradients


@pytest.mark.parametrize("shape", [(4, 36), (36, 4), (7, 7)])
def test_orthogonalized_is_the_singular_vectors_product(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    values = left.T @ orthogonalize(1000 * matrix) @ right.T
    diagonal = values.diagonal()
    torch.testing.assert_close(values, diagonal.diag(), rtol=0, atol=1e-4)
    assert ((diagonal > 0.65) & (diagonal < 1.25)).all()


def test_filters_move_by_nesterovs_momentum_made_orthogonal() -> None:
    model = network()
    filters = next(model.parameters())
    expected, momentum = filters.detach().clone(), torch.zeros_like(filters)
    optimizer = Muon(model.parameters(), lr=0.01, betas=BETAS, weight_decay=0.1)
    for gradient in take_steps(optimizer, model, 3):
        momentum = 0.9 * momentum + 0.1 * gradient
        ahead = (0.9 * momentum + 0.1 * gradient).view(4, 27)
        update = 0.2 * 27**0.5 * orthogonalize(ahead).view(4, 3, 3, 3)
        expected = expected - 0.01 * (update + 0.1 * expected)
    torch.testing.assert_close(filters, expected)


def test_all_else_moves_as_by_adam() -> None:
    others = []
    for kind in (Muon, torch.optim.AdamW):
        model = network()
        model[0].weight.requires_grad_(False)
        optimizer = kind(model.parameters(), lr=0.01, betas=BETAS, weight_decay=0.1, fused=True)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(2, 3, 8, 8)).square().mean().backward()
            optimizer.step()
        others.append(list(model.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(*others, strict=True))


def test_an_update_is_as_large_as_adams() -> None:
    model = network()
    before = model[0].weight.detach().clone()
    take_steps(Muon(model.parameters(), lr=1.0, weight_decay=0.0), model, 1)
    change = (model[0].weight - before).square().mean().sqrt()  # type: ignore[operator]
    assert 0.13 < change.item() < 0.25


def test_a_step_that_fp16_cannot_hold_is_left_out() -> None:
    model = network()
    optimizer = Muon(model.parameters(), lr=0.01, fused=True)
    scaler = torch.amp.GradScaler("cpu")
    take_steps(optimizer, model, 1)
    before = [weight.detach().clone() for weight in model.parameters()]
    momentum = optimizer.state[model[0].weight]["exp_avg"].clone()
    scaler.scale(model(torch.full((2, 3, 8, 8), 1e30)).square().sum()).backward()  # type: ignore[no-untyped-call]
    scaler.step(optimizer)
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    assert torch.equal(momentum, optimizer.state[model[0].weight]["exp_avg"])
