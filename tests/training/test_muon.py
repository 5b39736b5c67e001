"""Muon against the singular value decomposition, PyTorch's own and AdamW."""

from functools import partial

import pytest
import torch

from immiscible_policy.training.muon import RMS, Muon, by_gram_matrices, by_steps, orthogonal
from immiscible_policy.training.state import TrainState

SHAPES = [(8, 8), (4, 12), (12, 4), (16, 3, 5), (6, 4, 3, 3)]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def updates(gradients, lr=1e-2, **options):
    """What `Muon` adds to zeros in steps with these gradients, one after another."""
    parameter = torch.nn.Parameter(torch.zeros_like(gradients[0]))
    muon, seen = Muon([parameter], lr=torch.tensor(lr), **options), []
    for gradient in gradients:
        before = parameter.detach().clone()
        parameter.grad = gradient.clone()
        muon.step()
        seen.append(parameter.detach() - before)
    return seen


@pytest.mark.parametrize("shape", [(8, 8), (4, 12), (12, 4)])
def test_singular_vectors_stay_and_singular_values_come_near_one(shape):
    matrices = torch.stack([drawn(*shape, seed=seed) for seed in range(5)])
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    in_their_basis = left.mT @ orthogonal(matrices) @ right.mT
    found = in_their_basis.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(in_their_basis, torch.diag_embed(found), atol=1e-4, rtol=0)
    large = values > 0.05 * values[:, :1]  # the iteration has not yet reached those that are nearly zero
    assert large.float().mean() > 0.9 and found[large].min() > 0.65 and found[large].max() < 1.25


@pytest.mark.parametrize("rank", [1, 4, 32])
def test_the_gram_matrices_give_what_the_steps_give(rank):
    """Also for gradients of low rank, whose Gram matrices are rounded to ones that are not quite positive."""
    matrices = drawn(6, 32, rank) @ drawn(6, rank, 96, seed=1)
    unit = matrices / matrices.norm(dim=(-2, -1), keepdim=True)
    torch.testing.assert_close(by_gram_matrices(unit), by_steps(unit), rtol=0, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_update_is_as_large_as_adamws_whatever_the_gradients_scale(shape):
    gradients = [drawn(*shape, seed=seed) for seed in range(3)]
    small = updates([gradient * 1e-3 for gradient in gradients], lr=0.5)
    for update, other in zip(updates(gradients, lr=0.5), small, strict=True):
        torch.testing.assert_close(other, update, rtol=1e-4, atol=1e-6)
        assert update.square().mean().sqrt() == pytest.approx(0.5 * RMS, rel=0.25)


@pytest.mark.parametrize("shape", [(8, 8), (4, 12), (12, 4)])
def test_it_equals_pytorchs_but_for_bfloat16(shape):
    gradients = [drawn(*shape, seed=seed) for seed in range(4)]
    theirs = torch.nn.Parameter(drawn(*shape, seed=9))
    ours = torch.nn.Parameter(theirs.detach().clone())
    pytorchs = torch.optim.Muon([theirs], lr=1e-2, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")
    muon = Muon([ours], lr=torch.tensor(1e-2), weight_decay=0.3)
    for gradient in gradients:
        theirs.grad, ours.grad = gradient.clone(), gradient.clone()
        pytorchs.step()
        muon.step()
    largest = len(gradients) * 1e-2 * RMS * max(shape) ** 0.5
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.02 * largest)


def test_matrices_updated_together_are_updated_as_if_alone():
    together = [torch.nn.Parameter(drawn(*shape, seed=7)) for shape in [*SHAPES, *SHAPES]]
    alone = [torch.nn.Parameter(parameter.detach().clone()) for parameter in together]
    both = [Muon(together, lr=torch.tensor(0.1)), *(Muon([one], lr=torch.tensor(0.1)) for one in alone)]
    for step in range(3):
        for position, (one, other) in enumerate(zip(together, alone, strict=True)):
            one.grad = drawn(*one.shape, seed=100 * step + position)
            other.grad = one.grad.clone()
        for muon in both:
            muon.step()
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other)


def test_a_parameter_without_a_gradient_stays():
    moved, still = torch.nn.Parameter(drawn(4, 4)), torch.nn.Parameter(drawn(4, 4))
    kept = still.detach().clone()
    moved.grad = drawn(4, 4, seed=1)
    Muon([moved, still], lr=torch.tensor(0.1), weight_decay=0.5).step()
    assert torch.equal(still, kept)


def test_vectors_follow_adamw():
    """In one training, of matrices and vectors, the vectors' updates are those of AdamW."""
    make = partial(
        TrainState, lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1, warmup_steps=0, steps=5, ema_power=0.75, ema_max=0.99
    )
    torch.manual_seed(0)
    ours, plain = torch.nn.Linear(6, 4), torch.nn.Linear(6, 4)
    plain.load_state_dict(ours.state_dict())
    states = [make(ours, optimizer="muon"), make(plain, optimizer="adamw")]
    for step in range(3):
        for state in states:
            state.model.weight.grad, state.model.bias.grad = drawn(4, 6, seed=step), drawn(4, seed=10 + step)
            state.advance()
    torch.testing.assert_close(ours.bias, plain.bias)
    assert not torch.allclose(ours.weight, plain.weight)
