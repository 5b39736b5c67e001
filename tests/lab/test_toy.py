"""The toy: measures of the plane by hand, its sampling by algebra, and the experiment end to end."""

import math

import pytest
import torch

from immiscible_policy.cli import CommandError
from immiscible_policy.lab import toy
from immiscible_policy.lab.mixture import Mixture, crossings, curvature, mixing, ring, wasserstein
from immiscible_policy.lab.toy import TIMES, Net, ToyObjective, generate, train_net
from immiscible_policy.noise import make_selector
from tests.random_numbers import generator

TWO = Mixture(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), torch.tensor([0.75, 0.25]), std=0.1)


class Constant(torch.nn.Module):
    """Predicts the same everywhere."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, noisy, t, condition):
        return self.value.expand(len(noisy), 2)


# --- mixtures ---------------------------------------------------------------------------------------------------------


def test_points_are_put_on_the_mode_they_lie_on_and_on_none_beyond_four_deviations():
    points = torch.tensor([[-2.0, 0.39], [2.0, -0.39], [-2.0, 0.41], [0.0, 0.0]])
    assert TWO.classify(points).tolist() == [0, 1, 2, 2]


def test_mode_shares_sum_to_one_and_tell_a_known_mixture():
    points, modes = TWO.sample(4000, generator())
    shares = TWO.mode_shares(points)
    assert float(shares.sum()) == pytest.approx(1)
    assert torch.allclose(shares[:2], torch.tensor([0.75, 0.25]), atol=0.03) and shares[2] < 0.002
    on = TWO.classify(points) < 2
    assert torch.equal(TWO.classify(points)[on], modes[on])


def test_total_variation_by_hand():
    all_left = TWO.centres[:1].expand(8, 2)
    nowhere = torch.zeros(8, 2)
    exact = TWO.centres[TWO.apportioned(8)]
    assert TWO.total_variation(all_left) == pytest.approx(0.25)
    assert TWO.total_variation(nowhere) == pytest.approx(1)
    assert TWO.total_variation(exact) == pytest.approx(0)


@pytest.mark.parametrize("n", [1, 7, 100, 1000])
def test_apportioned_modes_have_the_shares_up_to_rounding(n):
    mixture = ring([0.19] * 5 + [0.05], radius=2.0, std=0.1)
    counts = torch.bincount(mixture.apportioned(n), minlength=6)
    assert int(counts.sum()) == n
    assert ((counts - n * mixture.shares).abs() <= 1).all()


def test_a_condition_keeps_its_own_modes_alone():
    mixture = ring([0.2, 0.3, 0.5], radius=1.0, std=0.1, conditions=[0, 1, 1])
    own = mixture.given(1)
    assert torch.equal(own.centres, mixture.centres[1:])
    assert torch.allclose(own.shares, torch.tensor([0.375, 0.625]))
    assert mixture.one_hot(torch.tensor([0, 2])).tolist() == [[1, 0], [0, 1]]
    with pytest.raises(ValueError, match="condition=2: no mode"):
        mixture.given(2)


# --- measures ---------------------------------------------------------------------------------------------------------


def test_wasserstein_of_a_shift_is_its_length_and_order_does_not_matter():
    points = torch.randn(50, 2, generator=generator())
    shifted = (points + torch.tensor([3.0, 4.0])).flip(0)
    assert wasserstein(points, shifted) == pytest.approx(5, abs=1e-5)
    assert wasserstein(points, points.flip(0)) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="50 and 3 points"):
        wasserstein(points, points[:3])


def test_straight_paths_have_no_curvature_and_a_half_circle_has_half_pi_less_one():
    ends = torch.randn(2, 5, 2, generator=generator())
    times = torch.linspace(0, 1, 9)[:, None, None]
    assert curvature((1 - times) * ends[0] + times * ends[1]) == pytest.approx(0, abs=1e-6)
    angles = torch.linspace(0, math.pi, 400)
    circle = torch.stack([angles.cos(), angles.sin()], dim=1)[:, None]
    assert curvature(circle) == pytest.approx(math.pi / 2 - 1, abs=1e-4)


def test_crossings_by_hand():
    starts = torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 5.0]])
    crossed = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 5.0]])
    assert crossings(starts, crossed) == pytest.approx(1 / 3)
    assert crossings(starts, starts + torch.tensor([1.0, 0.0])) == 0


@pytest.mark.parametrize("seed", range(3))
def test_assigned_pairs_never_cross(seed):
    x, _ = toy.MIXTURE.sample(96, generator(seed))
    select = make_selector("linear")
    assert crossings(select(x, generator=generator(seed)), x) == 0
    assert crossings(make_selector("vanilla")(x, generator=generator(seed)), x) > 0.1


def test_mixing_is_none_where_sorted_and_all_where_neighbours_differ():
    noise = torch.tensor([[0.0, 0.0], [0.1, 0.0], [5.0, 0.0], [5.1, 0.0]])
    assert mixing(noise, torch.tensor([0, 0, 1, 1])) == 0
    assert mixing(noise, torch.tensor([0, 1, 0, 1])) == 1


# --- paths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_sampling_flow_matching_is_eulers_method(steps):
    noise, v = torch.randn(4, 2, generator=generator()), torch.tensor([1.5, -0.5])
    paths = generate(Constant(v), toy.FLOW, noise, noise[:, :0], steps, limit=100)
    assert len(paths) == steps + 1
    for i, points in enumerate(paths):
        assert torch.allclose(points, noise + i / steps * v, atol=1e-5)
    assert curvature(paths) == pytest.approx(0, abs=1e-5)


def test_sampling_diffusion_with_the_exact_denoiser_of_one_point_arrives_there():
    centre = torch.tensor([1.0, -2.0])

    class Exact(torch.nn.Module):
        def forward(self, noisy, t, condition):
            assert 0 <= float(t[0]) < TIMES
            alpha, sigma = toy.DIFFUSION.coefficients(t.long())
            return (noisy - alpha[:, None] * centre) / sigma[:, None]

    noise = torch.randn(16, 2, generator=generator())
    for steps in (1, 5):
        paths = generate(Exact(), toy.DIFFUSION, noise, noise[:, :0], steps, toy.LIMIT)
        assert torch.allclose(paths[-1], centre.expand(16, 2), atol=1e-2)


def test_a_batch_is_a_function_of_seed_and_step_and_lies_on_the_path():
    def sample(seed):
        return ToyObjective(Net(0), toy.FLOW, toy.MIXTURE, make_selector("linear"), 32, seed).batches(3)[0][0]

    first, again, other = sample(0), sample(0), sample(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.noisy, other.noisy)
    data = first.noisy + (1 - first.t)[:, None] * first.target  # x_t = t x + (1 - t) eps and v = x - eps
    assert (toy.MIXTURE.classify(data) < 6).float().mean() > 0.95


def test_training_learns_a_single_point():
    point = Mixture(torch.tensor([[0.5, -0.5]]), torch.ones(1), std=0.01)
    nets = train_net(toy.FLOW, point, make_selector("vanilla"), steps=200, batch_size=64, seed=0)
    noise = torch.randn(100, 2, generator=generator())
    reached = [generate(net, toy.FLOW, noise, noise[:, :0], 20, toy.LIMIT)[-1] for net in nets]
    early, late = (float((x - point.centres).norm(dim=1).mean()) for x in reached)
    assert late < 0.15 < early


# --- the experiment ---------------------------------------------------------------------------------------------------

SMALL = {"seeds": "0", "k": 2, "steps": 12, "batch_size": 16}


def test_the_experiment_reproduces_and_names_every_arm(monkeypatch):
    monkeypatch.setattr(toy, "SAMPLES", 100)
    first, again = toy.measure(SMALL), toy.measure(SMALL)
    assert first.figures == again.figures and first.text == again.text
    assert list(first.figures["unconditional"]) == list(toy.ways(2))
    assert first.figures["unconditional"]["immiscible flow, assignment"]["training_crossings"]["mean"] == 0
    assert len(first.picture.axes) == 16


def test_the_floor_is_what_perfect_samples_score():
    floor = toy.floors(0, 128, repeats=2)
    assert 0 < floor["distance"] < 0.2 and 0 < floor["total_variation"] < 0.05
    assert 0 <= floor["conditional_off_modes"] < 0.005
    expected = math.sqrt(math.pi / 2) * math.sqrt(2 / (20 * 128 / 2))  # mean length of a difference of plain means
    shifts = [toy.floors(seed, 128, repeats=8)["prior_shift"] for seed in range(2)]
    assert sum(shifts) / 2 == pytest.approx(expected, rel=0.25)


def test_pairing_across_conditions_shifts_their_priors_and_pairing_within_does_not():
    shifts = {}
    for name, (_, select) in zip(("vanilla", "knn", "linear", "c2ot"), toy.conditional_ways(4).values(), strict=True):
        pairs = [toy.pair(select, toy.CONDITIONAL, 64, generator(seed)) for seed in range(30)]
        noise, modes = torch.cat([p.noise for p in pairs]), torch.cat([p.modes for p in pairs])
        shifts[name] = float((noise[modes < 3].mean(dim=0) - noise[modes >= 3].mean(dim=0)).norm())
    plain = 4 / math.sqrt(30 * 64) * math.sqrt(2)  # twice the length expected of the difference of two plain means
    assert max(shifts["vanilla"], shifts["c2ot"]) < plain < 0.8 < min(shifts["knn"], shifts["linear"])


@pytest.mark.parametrize(
    ("change", "message"),
    [({"steps": 5}, "steps=5"), ({"batch_size": 1}, "batch_size=1"), ({"k": 0}, "k=0"), ({"seeds": "x"}, "seeds=x")],
)
def test_bad_options_are_refused_in_one_line(change, message):
    with pytest.raises((ValueError, CommandError), match=message):
        toy.measure(SMALL | change)
