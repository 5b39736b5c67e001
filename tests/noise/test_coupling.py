"""Laws of the semi-discrete coupling."""

from dataclasses import replace

import pytest
import torch
from scipy import stats

from immiscible_policy.noise import fit_coupling


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_two_samples_on_a_line_split_the_gaussian_at_its_median():
    """Equal shares of N(0, 1) and ordered cells: negative noise belongs to the lower sample, wherever the two lie."""
    couple = fit_coupling(torch.tensor([[1.0], [5.0]]), steps=400, batch_size=512)
    noise = torch.tensor([[-2.0], [-0.5], [-0.15], [0.15], [0.5], [2.0]])
    assert couple(noise).tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
def test_every_sample_is_picked_equally_often(cost):
    data = torch.cat([torch.randn(90, 4, generator=generator()) * 0.2, 3 + torch.randn(10, 4, generator=generator(1))])
    couple = fit_coupling(data, cost=cost, steps=600, batch_size=512)
    even = replace(couple, potentials=torch.zeros(100))
    assert couple.imbalance(40_000, generator(2)) < 0.05 < 0.3 < even.imbalance(40_000, generator(2))


def test_pairs_are_nearer_than_chance_and_the_noise_stays_gaussian_by_construction():
    data = torch.randn(200, 3, generator=generator())
    couple = fit_coupling(data, steps=300, batch_size=512)
    noise = torch.randn(4000, 3, generator=generator(5))
    picked = data[couple(noise)]
    shuffled = picked[torch.randperm(4000, generator=generator(6))]
    assert float((noise - picked).norm(dim=1).mean()) < 0.5 * float((noise - shuffled).norm(dim=1).mean())


def test_a_single_sample_takes_every_noise_and_shapes_are_flattened():
    couple = fit_coupling(torch.ones(1, 2, 3), steps=3, batch_size=8)
    assert couple(torch.randn(5, 2, 3, generator=generator())).tolist() == [0] * 5


def test_fits_repeat():
    data = torch.randn(30, 2, generator=generator())
    first, second = (fit_coupling(data, steps=20, batch_size=32) for _ in range(2))
    assert torch.equal(first.potentials, second.potentials)


def test_picked_samples_follow_the_noise_not_its_order():
    data = torch.randn(50, 2, generator=generator())
    couple = fit_coupling(data, steps=50, batch_size=64)
    noise = torch.randn(64, 2, generator=generator(1))
    order = torch.randperm(64, generator=generator(2))
    assert torch.equal(couple(noise)[order], couple(noise[order]))


def test_the_noise_of_one_sample_is_one_cell_of_the_gaussian():
    """With samples spread over a line, the k-th of n takes the k-th n-th part of the Gaussian."""
    data = torch.linspace(-1, 1, 8)[:, None]
    couple = fit_coupling(data, steps=1500, batch_size=1024)
    noise = torch.randn(20_000, 1, generator=generator(3))
    rank = torch.from_numpy(stats.norm.cdf(noise[:, 0].numpy()) * 8).long()
    assert float((couple(noise) == rank).float().mean()) > 0.95


@pytest.mark.parametrize(
    "copies", [lambda data: torch.cat([data, data]), lambda data: torch.cat([data, data[:40] * 0])]
)
def test_samples_that_are_equal_share_their_cell_and_are_all_picked(copies):
    data = copies(torch.randn(60, 3, generator=generator()))
    couple = fit_coupling(data, steps=400, batch_size=512)
    noise = torch.randn(20_000, 3, generator=generator(1))
    assert couple.imbalance(20_000, generator(2)) < 0.06
    assert torch.bincount(couple(noise), minlength=len(data)).amin() > 0
    order = torch.randperm(20_000, generator=generator(3))
    assert torch.equal(couple(noise)[order], couple(noise[order]))


def test_only_copies_of_one_sample_are_picked_in_turn():
    picked = torch.bincount(fit_coupling(torch.ones(5, 2), steps=2)(torch.randn(5000, 2, generator=generator())))
    assert len(picked) == 5 and picked.amin() > 850


@pytest.mark.parametrize("cost", ["sqeuclidean", pytest.param("euclidean", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("factor", "shift"), [(1.0, 1000.0), (0.1, 100.0), (30.0, 0.0), (1e-3, 0.0)])
def test_the_scale_and_the_place_of_the_data_do_not_matter(cost, factor, shift):
    data = factor * torch.randn(100, 4, generator=generator()) + shift
    couple = fit_coupling(data, cost=cost, steps=400, batch_size=512)
    assert couple.imbalance(20_000, generator(2)) < 0.1


def test_a_fit_that_fails_says_so():
    data = torch.cat(
        [torch.randn(2000, 2, generator=generator()) * 1e-3, 1e4 + torch.randn(1, 2, generator=generator())]
    )
    with pytest.raises(ValueError, match="did not converge"):
        fit_coupling(data, cost="euclidean", steps=1, batch_size=2)


@pytest.mark.parametrize(
    ("windows", "options", "said"),
    [
        (torch.zeros(4, 2, dtype=torch.long), {}, "int64"),
        (torch.zeros(4, 0), {}, r"\(4, 0\)"),
        (torch.full((4, 2), float("inf")), {}, "NaN or infinity"),
        (torch.zeros(4, 2), {"steps": 0}, "steps=0"),
        (torch.zeros(4, 2), {"steps": 2.5}, "steps=2.5"),
        (torch.zeros(4, 2), {"batch_size": 1}, "batch_size=1"),
        (torch.zeros(4, 2), {"cost": "cosine"}, "cost=cosine"),
    ],
)
def test_unusable_windows_and_options_are_refused(windows, options, said):
    with pytest.raises(ValueError, match=said):
        fit_coupling(windows, **options)


@pytest.mark.parametrize(
    ("noise", "said"),
    [(torch.zeros(4, 3), "noise has 3 numbers per row; the coupled samples have 2"), (torch.zeros(0, 2), r"\(0, 2\)")],
)
def test_unusable_noise_is_refused(noise, said):
    with pytest.raises(ValueError, match=said):
        fit_coupling(torch.randn(5, 2, generator=generator()), steps=1)(noise)
