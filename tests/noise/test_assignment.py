"""Laws of the assignment family: optimal, a permutation, and the same whatever makes it faster or spreads it."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import linear_sum_assignment

from immiscible_policy.noise import fit_potentials, make_selector
from immiscible_policy.noise.assignment import Assignment
from immiscible_policy.noise.costs import condition_distances, condition_weight, distances, standardize
from immiscible_policy.noise.pairing import reduce, solve
from tests.random_numbers import generator

ALPHA = 1e-4
PERMUTING = [
    ("linear", {}),
    ("linear", {"cost": "sqeuclidean"}),
    ("idp26", {}),
    ("c2ot", {}),
    ("c2ot", {"weight": 3.0}),
]


def rows(noise: torch.Tensor) -> list[tuple[float, ...]]:
    return sorted(tuple(row) for row in noise.flatten(1).tolist())


@pytest.mark.parametrize(("name", "options"), PERMUTING)
def test_the_noise_is_a_permutation_of_what_vanilla_draws(name, options):
    x = torch.randn(24, 16, 2, generator=generator())
    condition = torch.randn(24, 5, generator=generator(4))
    paired = make_selector(name, **options)(x, condition=condition, generator=generator(1))
    assert rows(paired) == rows(torch.randn(x.shape, generator=generator(1)))


@pytest.mark.parametrize("cost", ["euclidean", "sqeuclidean"])
def test_assignment_is_the_cheapest_of_all_permutations(cost):
    x = torch.randn(6, 3, generator=generator(), dtype=torch.float64)
    noise = torch.randn(x.shape, generator=generator(1), dtype=torch.float64)
    paired = make_selector("linear", cost=cost)(x, generator=generator(1))
    power = 1 if cost == "euclidean" else 2

    def total(candidate):
        return float((x - candidate).norm(dim=1).pow(power).sum())

    cheapest = min(total(noise[list(order)]) for order in itertools.permutations(range(6)))
    assert total(paired) == pytest.approx(cheapest, rel=1e-9)


def test_assignment_agrees_with_scipy_on_plain_distances():
    x = torch.randn(64, 32, generator=generator())
    noise = torch.randn(x.shape, generator=generator(1))
    costs = np.linalg.norm(x[:, None].double().numpy() - noise[None].double().numpy(), axis=2)
    rows, columns = linear_sum_assignment(costs)
    paired = make_selector("linear")(x, generator=generator(1))
    got = (x - paired).norm(dim=1).double().sum()
    assert float(got) == pytest.approx(costs[rows, columns].sum(), rel=1e-6)
    assert float(got) < float((x - noise).norm(dim=1).sum())


def test_assignment_follows_the_order_of_the_batch():
    x = torch.randn(16, 4, generator=generator())
    order = torch.randperm(16, generator=generator(5))
    select = make_selector("linear")
    assert torch.equal(select(x, generator=generator(1))[order], select(x[order], generator=generator(1)))


def test_assignment_ignores_what_the_mask_excludes():
    x = torch.randn(16, 8, generator=generator())
    mask = torch.arange(8) < 3
    changed = torch.where(mask, x, 100.0)
    select = make_selector("linear")
    assert torch.equal(select(x, mask=mask, generator=generator(1)), select(changed, mask=mask, generator=generator(1)))
    assert not torch.equal(select(x, generator=generator(1)), select(changed, generator=generator(1)))


@pytest.mark.parametrize("shape", [(40, 40), (40, 120), (1, 1), (1, 3)])
def test_reductions_keep_the_optimal_cost(shape):
    costs = torch.rand(shape, generator=generator(), dtype=torch.float64)
    best_rows, best = linear_sum_assignment(costs.numpy())
    for potentials in (None, torch.randn(shape[0], generator=generator(1))):
        choice = solve(costs, potentials)
        assert len(set(choice.tolist())) == shape[0]
        assert float(costs[torch.arange(shape[0]), choice].sum()) == pytest.approx(
            float(costs.numpy()[best_rows, best].sum()), rel=1e-9
        )


def test_reduced_costs_are_nonnegative_with_a_zero_in_every_row():
    reduced = reduce(torch.randn(30, 30, generator=generator()), torch.randn(30, generator=generator(1)))
    assert float(reduced.amin()) >= 0
    assert torch.equal(reduced.amin(dim=1), torch.zeros(30, dtype=torch.float64))


@pytest.mark.parametrize("cost", ["euclidean", "sqeuclidean"])
def test_potentials_leave_the_cost_as_it_was(cost):
    data = torch.randn(500, 1, 2, generator=generator()) * torch.tensor([1.0, 0.3]) + torch.zeros(500, 8, 2)
    potentials = fit_potentials(data, cost=cost, steps=200)
    for size in (2, 33, 128):
        x = data[:size]
        plain = make_selector("linear", cost=cost)(x, generator=generator(size))
        warm = make_selector("linear", cost=cost, potentials=potentials)(x, generator=generator(size))
        power = 1 if cost == "euclidean" else 2

        def total(noise, x=x, power=power):
            return float((x - noise).flatten(1).double().norm(dim=1).pow(power).sum())

        assert total(warm) == pytest.approx(total(plain), rel=1e-6)
        assert rows(warm) == rows(plain)


def test_fitted_potentials_come_near_the_optimal_dual():
    """The dual value of good potentials is close to the assignment's cost, and never above it (weak duality)."""
    data = torch.randn(2000, 1, 2, generator=generator()).expand(-1, 8, -1).flatten(1)
    phi = fit_potentials(data, steps=1500)
    values = {"fitted": [], "none": [], "cost": []}
    for i in range(20):
        x, noise = data[100 * i : 100 * (i + 1)], torch.randn(100, 16, generator=generator(i))
        costs = distances(x, noise, None, "euclidean")
        for name, handicap in (("fitted", phi(x)), ("none", torch.zeros(100))):
            values[name].append(float(handicap.mean() + (costs - handicap[:, None]).amin(dim=0).mean()))
        values["cost"].append(float(costs[torch.arange(100), solve(costs)].mean()))
    fitted, none, cost = (np.array(values[name]) for name in ("fitted", "none", "cost"))
    assert (fitted <= cost + 1e-5).all()
    assert (cost - fitted).mean() < 0.35 * (cost - none).mean()


def test_potentials_are_fitted_the_same_each_time_and_leave_the_global_stream_alone():
    data = torch.randn(100, 6, generator=generator())
    before = torch.get_rng_state()
    a, b = fit_potentials(data, steps=20), fit_potentials(data, steps=20)
    assert torch.equal(a(data), b(data)) and torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("windows", "options", "message"),
    [
        (torch.zeros(4, 2, dtype=torch.long), {}, "int64"),
        (torch.full((4, 2), float("nan")), {}, "NaN"),
        (torch.zeros(0, 2), {}, r"\(0, 2\)"),
        (torch.zeros(4, 2), {"cost": "cosine"}, "cost=cosine"),
        (torch.zeros(4, 2), {"steps": 0}, "steps=0"),
        (torch.zeros(4, 2), {"batch_size": 1.5}, "batch_size=1.5"),
        (torch.zeros(4, 0), {}, r"\(4, 0\)"),
    ],
)
def test_unusable_windows_are_refused(windows, options, message):
    with pytest.raises(ValueError, match=message):
        fit_potentials(windows, **options)


def test_potentials_can_be_fitted_and_used_in_inference_mode():
    with torch.inference_mode():
        data = torch.randn(50, 4, generator=generator())
        potentials = fit_potentials(data, steps=20)
        noise = make_selector("linear", potentials=potentials)(data, generator=generator(1))
    assert rows(noise) == rows(torch.randn(50, 4, generator=generator(1)))


def test_potentials_help_in_many_dimensions_too():
    """Data of two clusters in 768 dimensions: the dual comes nearer to the cost than without potentials."""
    data = torch.randn(1000, 768, generator=generator()) * 0.1 + (torch.arange(1000) % 5 == 0)[:, None]
    phi = fit_potentials(data, steps=150)
    x, noise = data[:100], torch.randn(100, 768, generator=generator(1))
    costs = distances(x, noise, None, "euclidean")
    value = {name: float(f.mean() + (costs - f[:, None]).amin(dim=0).mean()) for name, f in
             (("fitted", phi(x)), ("none", torch.zeros(100)))}  # fmt: skip
    assert value["none"] < value["fitted"] <= float(costs[torch.arange(100), solve(costs)].mean()) + 1e-4


def test_potentials_of_other_samples_are_refused():
    potentials = fit_potentials(torch.randn(50, 4, generator=generator()), steps=2)
    with pytest.raises(ValueError, match="fitted to samples of 4 numbers; x has 6"):
        make_selector("linear", potentials=potentials)(torch.zeros(3, 6))


def test_a_larger_pool_comes_nearer_and_uses_no_noise_twice():
    x = torch.randn(32, 8, generator=generator())
    mean, seen = [], set()
    for pool in (1, 2, 8):
        noise = make_selector("linear", pool=pool)(x, generator=generator(1))
        drawn = {tuple(row) for row in torch.randn(pool * 32, 8, generator=generator(1)).tolist()}
        seen = set(map(tuple, noise.tolist()))
        assert len(seen) == 32 and seen <= drawn
        mean.append(float((x - noise).norm(dim=1).mean()))
    assert mean[2] < mean[1] < mean[0]


def test_a_pool_of_noises_is_chosen_optimally():
    x = torch.randn(3, 2, generator=generator(), dtype=torch.float64)
    drawn = torch.randn(6, 2, generator=generator(1), dtype=torch.float64)
    chosen = make_selector("linear", pool=2)(x, generator=generator(1))
    cheapest = min(float((x - drawn[list(order)]).norm(dim=1).sum()) for order in itertools.permutations(range(6), 3))
    assert float((x - chosen).norm(dim=1).sum()) == pytest.approx(cheapest, rel=1e-9)


def test_idp26_pairs_with_actions_standardised_over_the_batch():
    x = torch.randn(20, 6, generator=generator()) * torch.tensor([10.0, 1, 1, 0.1, 1, 5]) + 3
    by_hand = (x - x.mean(dim=0)) / x.std(dim=0, correction=0)
    expected = make_selector("linear")(by_hand, generator=generator(1))
    assert torch.equal(make_selector("idp26")(x, generator=generator(1)), expected)


def test_standardised_numbers_that_never_vary_are_zero_and_masked_ones_do_not_count():
    x = torch.tensor([[1.0, 5.0], [3.0, 5.0], [100.0, 5.0]])
    mask = torch.tensor([[True, True], [True, True], [False, True]])
    standard = standardize(torch.where(mask, x, 0.0), mask)
    assert torch.allclose(standard, torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]), atol=1e-5)


def test_discrete_conditions_never_exchange_noise():
    x = torch.randn(40, 4, generator=generator())
    label = torch.randint(3, (40,), generator=generator(2))
    plain = torch.randn(x.shape, generator=generator(1))
    paired = make_selector("c2ot")(x, condition=label, generator=generator(1))
    for value in range(3):
        group = label == value
        assert rows(paired[group]) == rows(plain[group])
        costs = torch.cdist(x[group], plain[group]).square().double().numpy()
        best = costs[linear_sum_assignment(costs)].sum()
        assert float((x[group] - paired[group]).square().sum()) == pytest.approx(best, rel=1e-5)


def test_infinite_weight_pairs_equal_conditions_only():
    x = torch.randn(30, 4, generator=generator())
    condition = torch.randint(2, (30, 2), generator=generator(2)).float()
    plain = torch.randn(x.shape, generator=generator(1))
    paired = make_selector("c2ot", weight=float("inf"))(x, condition=condition, generator=generator(1))
    for value in condition.unique(dim=0):
        group = (condition == value).all(dim=1)
        assert rows(paired[group]) == rows(plain[group])
    alone = torch.arange(30.0)[:, None]  # no two equal: every sample keeps its own noise
    assert torch.equal(make_selector("c2ot", weight=float("inf"))(x, condition=alone, generator=generator(1)), plain)


def test_infinite_weight_with_a_pool_stays_within_the_condition():
    x, label = torch.randn(12, 2, generator=generator()), torch.arange(12) % 3
    drawn = torch.randn(24, 2, generator=generator(1))
    chosen = make_selector("c2ot", pool=2)(x, condition=label, generator=generator(1))
    for i in range(12):
        (source,) = (drawn == chosen[i]).all(dim=1).nonzero()[:, 0].tolist()
        assert label[source % 12] == label[i]


def test_weight_zero_is_plain_assignment_and_weight_shifts_pairs_towards_like_conditions():
    x = torch.randn(64, 4, generator=generator())
    condition = torch.randn(64, 2, generator=generator(2))
    plain = torch.randn(x.shape, generator=generator(1))
    zero = make_selector("c2ot", weight=0.0)(x, condition=condition, generator=generator(1))
    assert torch.equal(zero, make_selector("linear", cost="sqeuclidean")(x, generator=generator(1)))

    def apart(noise):
        source = (noise[:, None] == plain[None]).all(dim=2).int().argmax(dim=1)
        return float(condition_distances(condition, "cosine")[torch.arange(64), source].mean())

    result = [
        apart(make_selector("c2ot", weight=weight)(x, condition=condition, generator=generator(1)))
        for weight in (0.0, 1.0, 10.0, 1000.0)
    ]
    assert result[0] > result[1] > result[2] > result[3] >= 0


def test_conditional_assignment_is_optimal_for_the_weighted_sum():
    x = torch.randn(6, 2, generator=generator(), dtype=torch.float64)
    condition = torch.randn(6, 3, generator=generator(2), dtype=torch.float64)
    noise = torch.randn(x.shape, generator=generator(1), dtype=torch.float64)
    paired = make_selector("c2ot", weight=2.0)(x, condition=condition, generator=generator(1))
    cosine = torch.nn.functional.cosine_similarity(condition[:, None], condition[None], dim=2)
    costs = torch.cdist(x, noise).square() + 2.0 * (1 - cosine)
    best = min(itertools.permutations(range(6)), key=lambda order: float(costs[torch.arange(6), list(order)].sum()))
    assert torch.equal(paired, noise[list(best)])


@pytest.mark.parametrize("ratio", [0.001, 0.02, 0.1, 0.5])
def test_the_adaptive_weight_is_the_smallest_that_leaves_so_few_cheaper_pairs(ratio):
    costs = torch.rand(100, 100, generator=generator(), dtype=torch.float64)
    conditions = condition_distances(torch.randn(100, 4, generator=generator(1), dtype=torch.float64), "cosine")

    def cheaper(weight):
        return int((costs + weight * conditions < costs.diagonal()[:, None] - 1e-12).sum())

    weight = float(condition_weight(costs, conditions, ratio))
    allowed = round(ratio * 100 * 99)
    assert cheaper(weight) <= allowed
    assert weight == 0 or cheaper(weight * (1 - 1e-9)) > allowed


def test_the_adaptive_weight_of_equal_conditions_is_zero():
    assert float(condition_weight(torch.rand(5, 5, generator=generator()), torch.zeros(5, 5), 0.01)) == 0


@pytest.mark.parametrize("condition_cost", ["cosine", "sqeuclidean"])
@pytest.mark.parametrize("weight", [None, 1e9])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_repeated_continuous_conditions_are_as_good_as_labels(condition_cost, weight, scale):
    """Embeddings of a few classes: equal rows are at distance 0, whatever rounding makes of it."""
    label = torch.randint(4, (64,), generator=generator(2))
    embedding = scale * torch.randn(4, 40, generator=generator(3))
    embedding[0] = 0
    x = torch.randn(64, 6, generator=generator())
    by_label = make_selector("c2ot")(x, condition=label, generator=generator(1))
    select = make_selector("c2ot", weight=weight, condition_cost=condition_cost)
    assert torch.equal(select(x, condition=embedding[label], generator=generator(1)), by_label)


@pytest.mark.parametrize("size", [64, 256])
def test_c2ot_moves_something_in_small_batches_and_large_ones(size):
    x = torch.randn(size, 2, generator=generator())
    condition = x + 0.1 * torch.randn(size, 2, generator=generator(2))
    plain = torch.randn(x.shape, generator=generator(1))
    paired = make_selector("c2ot")(x, condition=condition, generator=generator(1))
    assert float((x - paired).square().sum()) < float((x - plain).square().sum())


def gain_lost(x, noise, chosen, power):
    """Share of what the optimal pairs gain over plain ones that the chosen pairs miss, in float64."""
    costs = torch.cdist(x.double(), noise.double(), compute_mode="donot_use_mm_for_euclid_dist").pow(power)
    best = float(costs[linear_sum_assignment(costs.numpy())].sum())
    plain = float(costs.diagonal().sum())
    return (float((x.double() - chosen.double()).norm(dim=1).pow(power).sum()) - best) / (plain - best)


@pytest.mark.parametrize("cost", ["euclidean", "sqeuclidean"])
@pytest.mark.parametrize(("factor", "shift"), [(1.0, 0.0), (1.0, 30.0), (1.0, 1000.0), (0.01, 1000.0), (1e-6, 0.0)])
def test_the_gain_is_won_wherever_the_data_lie(cost, factor, shift):
    x = factor * torch.randn(64, 32, generator=generator()) + shift
    noise = torch.randn(x.shape, generator=generator(1))
    chosen = make_selector("linear", cost=cost)(x, generator=generator(1))
    assert gain_lost(x, noise, chosen, 1 if cost == "euclidean" else 2) < 1e-3


def test_continuous_conditions_keep_the_noise_of_each_condition_gaussian_where_plain_assignment_does_not():
    """C2OT's point: two conditions with data at -2 and +2; what noise does the first condition see?"""
    label = torch.arange(256) % 2
    x = (4.0 * label - 2)[:, None] + 0.1 * torch.randn(256, 1, generator=generator())
    aware = torch.cat(
        [make_selector("c2ot")(x, condition=label, generator=generator(i))[label == 0] for i in range(20)]
    )
    blind = torch.cat([make_selector("linear")(x, generator=generator(i))[label == 0] for i in range(20)])
    assert stats.kstest(aware.flatten().numpy(), "norm").pvalue > ALPHA
    assert stats.kstest(blind.flatten().numpy(), "norm").pvalue < 1e-30
    assert float(blind.mean()) < -0.7  # about the lower half of the Gaussian: -0.80


def test_a_condition_that_is_missing_or_not_finite_is_refused():
    with pytest.raises(ValueError, match="condition is missing"):
        make_selector("c2ot")(torch.zeros(4, 2))
    with pytest.raises(ValueError, match="condition contains NaN"):
        make_selector("c2ot")(torch.zeros(4, 2), condition=torch.full((4, 1), float("nan")))
    with pytest.raises(ValueError, match="condition contains NaN"):
        make_selector("c2ot", weight=float("inf"))(torch.zeros(4, 2), condition=torch.full((4, 1), float("nan")))


def test_pairing_begins_at_start_grows_over_the_ramp_and_ends_at_stop():
    x = torch.randn(20, 4, generator=generator())
    plain = torch.randn(x.shape, generator=generator(1))
    select = make_selector("linear", start=10, stop=40, ramp=9)

    def changed(step):
        noise = select(x, step=step, generator=generator(1))
        assert rows(noise) == rows(plain)
        return set((noise != plain).any(dim=1).nonzero()[:, 0].tolist())

    assert not any(changed(step) for step in (0, 9, 40, 100))
    assert changed(14) <= set(range(0, 20, 2)) and len(changed(14)) > 5  # half of the batch, evenly spread
    assert len(changed(25)) > 10
    assert torch.equal(select(x, step=25, generator=generator(1)), make_selector("linear")(x, generator=generator(1)))


def test_half_precision_pairs_as_single_precision_does():
    x = torch.randn(32, 8, generator=generator()).half()
    noise = make_selector("linear")(x, generator=generator(1))
    drawn = torch.randn(x.shape, generator=generator(1), dtype=torch.float16)
    costs = torch.cdist(x.double(), drawn.double())
    total = (x.double() - noise.double()).norm(dim=1).sum()
    assert float(total) == pytest.approx(float(costs[linear_sum_assignment(costs.numpy())].sum()), rel=1e-6)


def test_batches_of_one_and_equal_samples_are_no_special_case():
    assert make_selector("linear")(torch.zeros(1, 3), generator=generator()).shape == (1, 3)
    same = make_selector("idp26")(torch.ones(8, 3), generator=generator(1))
    assert rows(same) == rows(torch.randn(8, 3, generator=generator(1)))


def test_distances_agree_with_cdist_also_under_a_mask():
    x, noise = torch.randn(7, 5, generator=generator()), torch.randn(9, 5, generator=generator(1))
    mask = torch.rand(7, 5, generator=generator(2)) < 0.5
    by_hand = ((x[:, None] - noise[None]) * mask[:, None]).norm(dim=2)
    assert torch.allclose(distances(torch.where(mask, x, 0.0), noise, mask, "euclidean"), by_hand, atol=1e-5)


def test_an_assignment_is_what_its_parts_say():
    assert make_selector("linear") == Assignment()
    assert make_selector("idp26", cost="sqeuclidean") == Assignment("sqeuclidean", standardized=True)
