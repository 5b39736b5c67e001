"""The audit against laws: known distributions, quadrature, hand algebra."""

import json
import math
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from immiscible_policy.noise import make_selector
from immiscible_policy.noise.audit import audit, distance_change
from immiscible_policy.noise.audit import target as target_module
from immiscible_policy.noise.audit.statistics import (
    cluster_distances,
    correlation,
    gaussian_kl,
    kl_floor,
    ks_normal,
    moments,
    pair_distance,
    plain_ranges,
    prior_shift,
)
from immiscible_policy.noise.audit.target import target_variance
from tests.random_numbers import generator


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed))


VANILLA = make_selector("vanilla")


def far_noise(x, *, condition=None, mask=None, step=None, generator=None):
    """Plain noise that shares no draw with what the audit calls plain."""
    torch.randn(3, generator=generator)
    return torch.randn(x.shape, generator=generator, dtype=x.dtype)


# Distances


def test_pair_distance_is_euclidean_over_the_numbers_that_count():
    x, noise = torch.zeros(2, 2, 2), torch.tensor([[[3.0, 4.0], [12.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]])
    assert pair_distance(x, noise).tolist() == [13.0, 1.0]
    assert pair_distance(x, noise, torch.tensor([[True], [False]])).tolist() == [5.0, 0.0]


def test_vanilla_changes_nothing():
    result = distance_change(VANILLA, normal(64, 8), batch_size=32)
    assert (result.percent, result.interval) == (0.0, (0.0, 0.0))
    assert result.vanilla == result.selected > 0


def test_the_interval_holds_the_true_change_in_its_share_of_cases():
    x = normal(64, 4)
    source = generator(1)
    result = [distance_change(far_noise, x, batch_size=16, batches=5, generator=source) for _ in range(400)]
    share = np.mean([item.interval[0] <= 0 <= item.interval[1] for item in result])
    assert 0.92 < share < 0.98


@pytest.mark.parametrize(("dims", "k", "radius"), [(32, 4, 3.0), (2, 8, 1.0), (512, 16, 10.0)])
def test_the_change_of_knn_is_that_of_the_least_of_k_distances(dims, k, radius):
    """P(least of k > d) = (1 - F(d^2))^k with F noncentral chi-squared; a mean is the integral of such a tail."""

    def mean_distance(candidates):
        distance = np.linspace(0, 3 * math.sqrt(dims + radius**2), 4001)
        return integrate.trapezoid(stats.ncx2.sf(distance**2, dims, radius**2) ** candidates, distance)

    x = radius * torch.nn.functional.normalize(normal(2000, dims), dim=1)
    result = distance_change(make_selector("knn", k=k), x, batch_size=500, batches=12, generator=generator(1))
    expected = 100 * (mean_distance(k) / mean_distance(1) - 1)
    assert result.vanilla == pytest.approx(mean_distance(1), rel=0.02)
    assert result.percent == pytest.approx(expected, abs=2 * (result.interval[1] - result.interval[0]))
    assert result.interval[1] - result.interval[0] < 0.3 * abs(expected)


def test_only_numbers_inside_the_mask_enter_the_distance():
    x = torch.cat([normal(64, 3), torch.full((64, 5), 1000.0)], dim=1)
    mask = torch.arange(8) < 3
    result = distance_change(make_selector("knn", k=8), x, mask=mask, batch_size=64)
    assert result.vanilla < 10 and result.percent < -20


# Moments and tests of the law


def test_moments_of_known_numbers():
    """Numbers -1, -1, -1, 3: mean 0, variance 3, third moment 6, fourth 21."""
    result = moments(torch.tensor([[-1.0, -1.0], [-1.0, 3.0]]))
    assert (result.mean, result.variance, result.squared_norm) == (0.0, 3.0, 6.0)
    assert result.skewness == pytest.approx(6 / 3**1.5)
    assert result.kurtosis == pytest.approx(21 / 9 - 3)
    assert (result.largest_mean, result.smallest_variance, result.largest_variance) == (1.0, 0.0, 8.0)


def test_plain_noise_stays_in_its_ranges_in_their_share_of_cases():
    ranges = plain_ranges(400, 6)
    source = generator(2)
    drawn = [moments(torch.randn(400, 6, generator=source)) for _ in range(500)]
    inside = {
        name: np.array([low <= getattr(result, name) <= high for result in drawn])
        for name, (low, high) in ranges.items()
    }
    inside["both extreme variances"] = inside.pop("smallest_variance") & inside.pop("largest_variance")
    shares = {name: item.mean() for name, item in inside.items()}
    assert len(shares) == 7 and all(0.92 < share < 0.98 for share in shares.values()), shares


def test_ks_of_normal_quantiles_is_half_a_step():
    values = torch.from_numpy(stats.norm.ppf((np.arange(1000) + 0.5) / 1000))
    result = ks_normal(values)
    assert result.statistic == pytest.approx(0.5 / 1000, abs=1e-9) and result.pvalue > 0.999
    assert result.critical == pytest.approx(1.358 / math.sqrt(1000), rel=0.01)
    assert ks_normal(1.5 * values).statistic > ks_normal(1.5 * values).critical


def test_the_kl_floor_is_the_published_one():
    """50,000 CIFAR-sized noises: plain noise is published with 48.25, KNN with 48.60 (2505.18521)."""
    floor, deviation = kl_floor(50_000, 3072)
    assert floor == pytest.approx(48.23, abs=0.005)
    assert abs(48.25 - floor) < deviation < (48.60 - floor) / 10


@pytest.mark.parametrize(("samples", "dims"), [(12, 1), (20, 5), (60, 40)])
def test_the_kl_floor_is_the_mean_over_simulations(samples, dims):
    source = generator(3)
    values = np.array([gaussian_kl(torch.randn(samples, dims, generator=source)).kl for _ in range(2000)])
    floor, deviation = kl_floor(samples, dims)
    assert values.mean() == pytest.approx(floor, abs=4 * deviation / math.sqrt(2000))
    assert values.std() == pytest.approx(deviation, rel=0.12)


def test_kl_of_one_dimension_by_hand():
    """Numbers 0, 1, 2 (mean 1, variance 2/3): (2/3 + 1 - 1 - log 2/3) / 2."""
    result = gaussian_kl(torch.tensor([[0.0], [1.0], [2.0]]))
    assert result.kl == pytest.approx((2 / 3 - math.log(2 / 3)) / 2)
    assert result.excess == pytest.approx(result.kl - result.floor)


def test_the_kl_excess_is_the_divergence_of_the_law_itself():
    shrunk = 0.9 * normal(20_000, 16) + torch.nn.functional.one_hot(torch.tensor(3), 16)
    expected = (16 * (0.81 - 1 - math.log(0.81)) + 1) / 2
    assert gaussian_kl(shrunk).excess == pytest.approx(expected, rel=0.05)
    plain = gaussian_kl(normal(20_000, 16))
    assert abs(plain.excess) < 4 * plain.deviation


# Clusters and correlation


def test_two_clusters_by_hand():
    """Centroids (0, 0) and (3, 4); in each the summed variance is 2, so sampling adds 2 * 2 / 2 to 25."""
    result = cluster_distances(torch.tensor([[[1.0, 0.0], [-1.0, 0.0]], [[3.0, 3.0], [3.0, 5.0]]]))
    assert (result.mean, result.std, result.floor) == (5.0, 0.0, math.sqrt(2))
    assert result.corrected == pytest.approx(math.sqrt(23))


def test_centroids_of_plain_noise_lie_at_the_floor():
    result = cluster_distances(normal(20, 50, 400))
    assert result.mean == pytest.approx(result.floor, rel=0.02)
    assert result.corrected < 0.25 * result.floor


def test_the_corrected_distance_is_that_of_the_true_means_whatever_the_spread():
    means = torch.zeros(6, 1, 300)
    means[torch.arange(6), 0, torch.arange(6)] = 2 / math.sqrt(2)  # all pairs 2 apart
    clusters = means + 3 * normal(6, 200, 300)
    result = cluster_distances(clusters)
    assert result.mean > 2 * result.floor
    assert result.corrected == pytest.approx(2, rel=0.1)
    assert cluster_distances(cluster for cluster in clusters) == result


def test_correlation_by_hand():
    x = torch.tensor([[1.0, 5.0, 0.0], [2.0, 5.0, 3.0], [3.0, 5.0, 1.0]])
    assert correlation(x, 2 * x + 1).coordinates == pytest.approx(2 / 3)  # one of three does not vary
    assert correlation(x, -x).row_means == pytest.approx(-1)
    assert correlation(torch.ones(3, 2), normal(3, 2)).row_means == 0


# Variance of the target


def two_point_variance(alpha_bar: float, ratio) -> float:
    """E Var(eps | x_t) for the data -1 and 1 by quadrature over x_t; ratio(x, eps) = p(eps | x) / N(eps)."""
    a, s = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    x_t = np.linspace(-a - 9 * s, a + 9 * s, 40_001)
    low, high = (x_t + a) / s, (x_t - a) / s  # the noise if the sample was -1 or 1
    p_low, p_high = (stats.norm.pdf(eps) * ratio(x, eps) / (2 * s) for x, eps in ((-1, low), (1, high)))
    density = np.maximum(p_low + p_high, 1e-300)
    return float(integrate.trapezoid(p_low * p_high / density * (low - high) ** 2, x_t))


def knn_ratio(k: int):
    return lambda x, eps: k * stats.ncx2.sf((x - eps) ** 2, 1, x**2) ** (k - 1)


LEVELS = (0.9, 0.5, 0.1, 0.01)
TWO_POINTS = torch.tensor([[-1.0], [1.0]])


def test_target_variance_of_vanilla_is_that_of_quadrature():
    result = target_variance(VANILLA, TWO_POINTS, alpha_bars=LEVELS, draws=20_000, generator=generator(1))
    exact = [two_point_variance(level, lambda x, eps: 1.0) for level in LEVELS]
    assert result.vanilla == pytest.approx(exact, rel=0.04)
    assert result.selected == pytest.approx(exact, rel=0.06)


@pytest.mark.parametrize("k", [2, 4])
def test_target_variance_of_knn_is_a_tight_upper_bound(k):
    select = make_selector("knn", k=k)
    levels = (0.03, 0.01, 0.003)
    result = target_variance(select, TWO_POINTS, alpha_bars=levels, draws=10_000, generator=generator(1))
    exact = [two_point_variance(level, knn_ratio(k)) for level in levels]
    for at_most, plain, truth in zip(result.selected, result.vanilla, exact, strict=True):
        assert 0.9 * truth < at_most < 1.25 * truth < plain


def test_noise_that_gives_its_sample_away_leaves_nothing():
    """Noise on the sample's side of 0: x_t lies there too, so nothing remains to be guessed."""

    def same_side(x, *, condition=None, mask=None, step=None, generator=None):
        return torch.randn(x.shape, generator=generator).abs() * x.sign()

    result = target_variance(same_side, TWO_POINTS, alpha_bars=LEVELS, draws=2000, generator=generator(1))
    assert all(at_most < 0.25 * plain for at_most, plain in zip(result.selected, result.vanilla, strict=True))


@pytest.mark.parametrize(("name", "options"), [("knn", {"k": 2}), ("knn", {"k": 16}), ("linear", {})])
def test_selection_leaves_less_variance(name, options):
    x = 0.5 * normal(128, 1, 2).expand(-1, 8, -1) + 0.2 * normal(128, 8, 2, seed=1)
    result = target_variance(make_selector(name, **options), x, alpha_bars=(0.5, 0.1), generator=generator(1))
    assert all(0 <= at_most < 0.95 * plain for at_most, plain in zip(result.selected, result.vanilla, strict=True))


def test_nearest_denoisers_agree_with_the_exact_posterior_of_knn():
    """Posterior means under Sankaran's approximation and under scipy's noncentral chi-squared law."""
    x = 0.5 * normal(64, 6).double()
    a = s = math.sqrt(0.5)
    x_t = a * x + s * make_selector("knn", k=4)(x, generator=generator(1))
    eps = (x_t[:, None] - a * x) / s  # (queries, samples, D)
    distances = (x - eps).square().sum(2).numpy()
    exact = 3 * torch.from_numpy(stats.ncx2.logsf(distances, 6, x.square().sum(1).numpy()))
    result = target_module.nearest_ratio(x, 6, k=4)(x_t, a, s)
    normal_part = -eps.square().sum(2) / 2
    torch.testing.assert_close((normal_part + result).softmax(1), (normal_part + exact).softmax(1), atol=0.01, rtol=0)


@pytest.mark.parametrize(("degrees", "noncentrality"), [(1, 4.0), (2, 0.0), (2, 4.0), (32, 8.0), (3072, 770.0)])
def test_the_survival_function_is_that_of_scipy(degrees, noncentrality):
    quantiles = np.linspace(0.001, 0.999, 200)
    law = stats.ncx2(degrees, noncentrality) if noncentrality else stats.chi2(degrees)
    value = torch.from_numpy(law.ppf(quantiles))
    result = target_module.log_survival(value, degrees, torch.tensor(noncentrality, dtype=torch.float64)).exp()
    np.testing.assert_allclose(result.numpy(), 1 - quantiles, atol=0.015)


def test_sinkhorn_gives_every_sample_its_share():
    logits = 3 * normal(200, 10).double()
    w = target_module.sinkhorn(logits)
    shares = (logits + w.log()).softmax(dim=1).sum(dim=0)
    torch.testing.assert_close(shares, torch.full_like(shares, 20.0), rtol=1e-6, atol=0)


def test_log_matmul_exp_is_the_log_of_summed_exponentials():
    u, v = 50 * normal(7, 5).double(), 50 * normal(5, 3).double()
    expected = torch.logsumexp(u[:, :, None] + v, dim=1)
    torch.testing.assert_close(target_module.log_matmul_exp(u, v), expected)


def test_the_span_keeps_every_inner_product():
    data, noise = normal(5, 40).double(), normal(3, 5, 40, seed=1).double()
    short, projected = target_module.in_span(data, noise)
    assert short.shape == (5, 6) and projected.shape == (3, 5, 6)
    torch.testing.assert_close(short @ short.T, data @ data.T)
    torch.testing.assert_close(projected @ short.T, noise @ data.T)
    torch.testing.assert_close(projected.norm(dim=2), noise.norm(dim=2))


def test_the_nearest_denoiser_is_the_same_in_the_span():
    """The distance that KNN shortens lies mostly outside the span of a few samples; none of it may be lost."""
    data, x_t = 0.5 * normal(5, 40).double(), normal(1, 7, 40, seed=1).double()
    short, projected = target_module.in_span(data, x_t)
    whole, result = (
        target_module.nearest_ratio(x, 40, k=16)(at, 0.5, math.sqrt(0.75))
        for x, at in ((data, x_t[0]), (short, projected[0]))
    )
    torch.testing.assert_close(result, whole)


def test_dimensions_without_data_change_nothing_but_the_share_of_each_number():
    x = normal(16, 4)
    wide = torch.cat([x, torch.zeros(16, 28)], dim=1)
    narrow = target_variance(VANILLA, x, alpha_bars=(0.5,), draws=1000, generator=generator(1)).vanilla[0]
    result = target_variance(VANILLA, wide, alpha_bars=(0.5,), draws=1000, generator=generator(2)).vanilla[0]
    assert result * 8 == pytest.approx(narrow, rel=0.04)


# The whole audit


def test_assignment_keeps_the_noise_and_shortens_the_distance():
    result = audit(make_selector("linear"), normal(300, 4, 2), batch_size=64, batches=4)
    kept = result.pairs.plain.flatten(2).sort(dim=1).values
    assert torch.equal(kept, result.pairs.noise.flatten(2).sort(dim=1).values)
    assert result.selected.squared_norm == pytest.approx(result.vanilla.squared_norm, rel=1e-9)
    assert result.distance.interval[1] < -10
    assert result.correlation.coordinates > 0.3 and result.gaussian.excess < 4 * result.gaussian.deviation


def test_knn_at_zero_keeps_the_shortest_of_k_norms():
    """E of the least of 4 chi-squared(32) numbers, the integral of its tail; plain noise has 32."""
    length = np.linspace(0, 120, 8001)
    expected = integrate.trapezoid(stats.chi2.sf(length, 32) ** 4, length)
    result = audit(make_selector("knn", k=4), torch.zeros(512, 32), alpha_bars=(0.5,))
    assert result.selected.squared_norm == pytest.approx(expected, rel=0.02)
    assert result.vanilla.squared_norm == pytest.approx(32, rel=0.02)
    assert result.ks.statistic > result.ks.critical and result.gaussian.excess > 4 * result.gaussian.deviation


def test_knn_of_action_sized_samples_shortens_the_noise_from_32_to_26():
    """D = 32, k = 4, samples of squared norm 10, as normalised action windows have."""
    x = math.sqrt(10) * torch.nn.functional.normalize(normal(2000, 32), dim=1)
    result = audit(make_selector("knn", k=4), x, batches=16, alpha_bars=(0.5,))
    assert result.selected.squared_norm == pytest.approx(25.9, abs=0.4)


def test_an_audit_is_a_function_of_its_generator():
    x, select = normal(40, 6), make_selector("knn", k=4)
    before = torch.get_rng_state()

    def figures(source):
        result = audit(select, x, batch_size=16, batches=3, generator=source).as_dict()
        return {name: value for name, value in result.items() if name != "seconds"}

    assert figures(generator(1)) == figures(generator(1)) != figures(generator(2))
    assert figures(None) == figures(None)
    assert torch.equal(before, torch.get_rng_state())


def test_condition_and_mask_follow_their_samples():
    x = normal(50, 3)
    mask = x > 0
    seen = []

    def spy(batch, *, condition=None, mask=None, step=None, generator=None):
        seen.append((torch.equal(condition, batch.sum(dim=1)), torch.equal(mask, batch > 0), len(batch), step))
        return torch.randn(batch.shape, generator=generator)

    audit(spy, x, batch_size=20, batches=3, condition=x.sum(dim=1), mask=mask, step=7)
    assert set(seen) == {(True, True, 20, 7)} and len(seen) == 3 + 4


def test_few_samples_form_every_batch_and_too_few_pairs_have_no_kl():
    result = audit(make_selector("knn"), normal(6, 40), batch_size=256, batches=2)
    assert (result.batch_size, result.batches, result.dims) == (6, 2, 40)
    assert result.gaussian is None and result.as_dict()["gaussian"] is None
    assert "needs more than 40 pairs" in result.table()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_floating_type_is_audited(dtype):
    result = audit(make_selector("knn", k=8), normal(64, 8).to(dtype), batch_size=32, batches=3)
    assert result.distance.percent < -5 and 0.5 < result.selected.variance < 1


def test_the_record_is_json_and_the_table_says_the_same():
    result = audit(make_selector("knn", k=8), normal(200, 8), batch_size=64, batches=3)
    record = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert record["distance"]["percent"] == result.distance.percent
    assert record["target"]["alpha_bars"] == [0.99, 0.9, 0.5, 0.1, 0.01]
    assert "pairs" not in record and record["seconds"] > 0
    table = result.table()
    assert f"{result.distance.percent:+.2f}%" in table.splitlines()[1]
    variance = next(line for line in table.splitlines() if line.startswith("  variance"))
    assert variance.split()[1:3] == [f"{result.vanilla.variance:.4f}", f"{result.selected.variance:.4f}*"]
    assert max(map(len, table.splitlines())) <= 100


def test_the_plot_shows_the_audit():
    result = audit(make_selector("knn", k=8), normal(200, 8), batch_size=64, batches=3)
    distance, marginal, norms, target = result.plot().axes
    assert f"{result.distance.percent:+.2f}%" in distance.get_title("left")
    assert f"variance {result.selected.variance:.3f}" in marginal.get_title("left")
    assert f"{result.selected.squared_norm:.2f} selected" in norms.get_title("left")
    plain, selected = target.lines
    assert tuple(plain.get_ydata()) == result.target.vanilla
    assert tuple(selected.get_ydata()) == result.target.selected


def test_seconds_are_the_median_of_the_batches():
    durations = iter([0.0, 0.03, 0.2, *[0.0] * 4])  # the last four measure the target variance

    def slow(x, *, condition=None, mask=None, step=None, generator=None):
        time.sleep(next(durations))
        return torch.randn(x.shape, generator=generator)

    assert 0.03 <= audit(slow, normal(8, 2), batch_size=4, batches=3).seconds < 0.2


def test_the_audit_imports_neither_matplotlib_nor_the_evaluation():
    code = "import immiscible_policy.noise.audit, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "scipy.stats" in loaded and not {"matplotlib", "immiscible_policy.evaluation"} & set(loaded)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.zeros(4, 2, dtype=torch.long), {}, "int64"),
        (torch.zeros(0, 2), {}, r"\(0, 2\)"),
        (torch.zeros(1, 2), {}, "x has 1 sample"),
        (torch.tensor([[0.0], [float("nan")]]), {}, "NaN or infinity in sample 1"),
        (torch.tensor([[float("inf")], [0.0]]), {}, "NaN or infinity in sample 0"),
        (torch.zeros(4, 2), {"batch_size": 1}, "batch_size=1"),
        (torch.zeros(4, 2), {"batches": 1}, "batches=1"),
        (torch.zeros(4, 2), {"alpha_bars": (0.5, 1.0)}, r"alpha_bars=\(0.5, 1.0\)"),
        (torch.zeros(4, 2), {"alpha_bars": ()}, r"alpha_bars=\(\)"),
        (torch.zeros(4, 2), {"condition": torch.zeros(3)}, "condition has shape"),
        (torch.zeros(4, 2), {"mask": torch.zeros(3, dtype=torch.bool)}, "mask has shape"),
    ],
)
def test_what_cannot_be_audited_is_refused_before_anything_is_selected(x, options, message):
    def never(*_, **__):
        pytest.fail("noise was selected for input that is refused")

    with pytest.raises(ValueError, match=message):
        audit(never, x, **options)


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda: pair_distance(torch.zeros(2, 3), torch.zeros(3, 2)), "equal shapes"),
        (lambda: moments(torch.zeros(1, 3)), r"\(1, 3\)"),
        (lambda: moments(torch.zeros(4, 3)), "all numbers of the noise are 0.0"),
        (lambda: moments(torch.full((4, 3), float("nan"))), "noise contains NaN"),
        (lambda: ks_normal(torch.zeros(0)), "empty"),
        (lambda: ks_normal(torch.tensor([float("nan")])), "NaN"),
        (lambda: gaussian_kl(torch.zeros(3, 3)), "3 samples of 3 numbers"),
        (lambda: gaussian_kl(torch.full((5, 1), float("inf"))), "NaN or infinity"),
        (lambda: cluster_distances(torch.zeros(1, 3, 2)), "1 clusters"),
        (lambda: cluster_distances([torch.zeros(3, 2), torch.zeros(4, 2)]), "2 clusters of shapes"),
        (lambda: cluster_distances(torch.zeros(2, 1, 2)), "2 samples or more"),
        (lambda: target_variance(VANILLA, torch.zeros(4, 2), draws=3), "draws=3"),
        (lambda: target_variance(VANILLA, torch.full((4, 2), float("nan"))), "NaN"),
    ],
)
def test_what_cannot_be_measured_is_refused(measure, message):
    with pytest.raises(ValueError, match=message):
        measure()


@pytest.mark.gpu
def test_an_audit_on_cuda_is_that_on_the_cpu():
    x, select = normal(200, 8), make_selector("knn", k=8)
    on_cpu, on_cuda = (audit(select, item, batch_size=64, batches=3, generator=generator(1)) for item in (x, x.cuda()))
    assert on_cuda.distance.percent == pytest.approx(on_cpu.distance.percent, abs=1e-3)
    assert on_cuda.selected.squared_norm == pytest.approx(on_cpu.selected.squared_norm, rel=1e-5)
    assert on_cuda.target.vanilla == pytest.approx(on_cpu.target.vanilla, rel=1e-4)


@pytest.mark.gpu
def test_on_cuda_a_selector_gets_a_generator_of_the_samples_device():
    def own(x, *, generator=None, **others):
        return torch.randn(x.shape, generator=generator, device=x.device)

    assert audit(own, normal(200, 8).cuda(), batch_size=64, batches=3).selected.variance == pytest.approx(1, abs=0.1)


def test_prior_shift_finds_the_length_of_the_mean_noise_that_a_condition_meets():
    condition = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
    plain = torch.randn(4000, 8, generator=torch.Generator().manual_seed(1))
    weights = torch.zeros(3, 8)
    weights[0, 0], weights[1, 5] = 1.2, 0.9  # mean noise of length sqrt(1.2^2 + 0.9^2) = 1.5
    assert prior_shift(condition, plain) < 0.1
    assert prior_shift(condition, plain + condition @ weights) == pytest.approx(1.5, abs=0.1)
    assert prior_shift(torch.zeros(4000, 2), plain + 2 / math.sqrt(8)) == pytest.approx(2, abs=0.1)  # all meet one


def test_prior_shift_is_found_where_a_regression_of_so_many_numbers_predicts_worse_than_none():
    """40 numbers of condition, 32 of noise, 2 x 400 pairs: the squared shift is a tenth of what fitting costs."""
    condition = normal(800, 40)
    shift = 0.5 * condition[:, :1] * torch.nn.functional.one_hot(torch.tensor(3), 32)
    squares = [
        [prior_shift(condition, normal(800, 32, seed=seed) + mean) ** 2 for seed in range(1, 41)]
        for mean in (torch.zeros(1), shift)
    ]
    assert np.mean(squares[0]) < 0.08  # negative ones are cut off at 0
    assert np.mean(squares[1]) == pytest.approx(0.25, abs=0.05)


def test_prior_shift_shows_what_assignment_does_across_conditions_and_c2ot_does_not():
    label = torch.arange(256)[:, None] % 2
    x = (4.0 * label - 2).expand(-1, 4) + 0.1 * torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
    across = audit(make_selector("linear"), x, condition=label, batches=8)
    within = audit(make_selector("c2ot"), x, condition=label, batches=8)
    assert across.prior_shift == pytest.approx(math.sqrt(2 / math.pi), abs=0.1)  # half of the Gaussian for each
    assert within.prior_shift < 0.3
    assert "mean noise of a condition" in across.table() and across.as_dict()["prior_shift"] == across.prior_shift
    assert audit(make_selector("linear"), x).prior_shift is None


@pytest.mark.parametrize("select", [make_selector("linear"), make_selector("knn", k=64)], ids=["linear", "knn"])
def test_samples_that_are_met_again_are_no_prior_shift(select):
    """Of 512 samples each is in half of the batches, with conditions that have nothing to do with it."""
    squares = []
    for seed in range(2):
        x, condition = normal(512, 8, seed=seed), normal(512, 40, seed=seed + 100)
        result = audit(select, x, condition=condition, batch_size=256, batches=8)
        noise, conditions = result.pairs.noise.flatten(0, 1), condition[result.pairs.rows.flatten()]
        squares.append((result.prior_shift**2, prior_shift(conditions, noise) ** 2))
    kept_apart, mixed = np.mean(squares, axis=0)
    assert kept_apart < 0.1 < 3 * kept_apart + 0.1 < mixed


def test_prior_shift_needs_a_condition_for_each_noise():
    with pytest.raises(ValueError, match="3 conditions and 4 noises"):
        prior_shift(torch.zeros(3, 1), torch.zeros(4, 2))
