"""Laws of the noise selectors, asserted for every selector in the registry where they are common."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode

from immiscible_policy.noise import SELECTORS, make_selector
from immiscible_policy.noise.knn import nearest_by_projection
from tests.random_numbers import generator

ALPHA = 1e-4


@pytest.fixture(params=sorted(SELECTORS))
def name(request) -> str:
    return request.param


def conditions(count: int) -> torch.Tensor:
    return torch.randn(count, 3, generator=generator(7))


def test_registry_is_complete():
    assert set(SELECTORS) == {"vanilla", "knn", "sign", "linear", "idp26", "c2ot"}


def test_the_same_call_serves_every_selector_and_keeps_no_state(name):
    """One call with everything that a trainer can pass; a second selector and a second call give the same."""
    x = torch.randn(12, 16, 2, generator=generator())
    mask = torch.rand(12, 16, 1, generator=generator(3)) < 0.7
    select = make_selector(name)

    def call(chosen):
        return chosen(x, condition=conditions(12), mask=mask, step=5, generator=generator(1))

    first = call(select)
    assert torch.equal(first, call(select)) and torch.equal(first, call(make_selector(name)))


@pytest.mark.parametrize("shape", [(3, 2), (5, 16, 2), (2, 3, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_same_shape_and_dtype(name, shape, dtype):
    x = torch.randn(shape, generator=generator()).to(dtype)
    eps = make_selector(name)(x, condition=conditions(len(x)), generator=generator(1))
    assert eps.shape == x.shape and eps.dtype == dtype and torch.isfinite(eps).all()


def test_noise_is_a_function_of_the_generator(name):
    x = torch.randn(8, 16, 2, generator=generator())
    select = make_selector(name)
    first = select(x, condition=conditions(8), generator=generator(1))
    assert torch.equal(first, select(x, condition=conditions(8), generator=generator(1)))
    assert not torch.equal(first, select(x, condition=conditions(8), generator=generator(2)))


def test_the_global_stream_is_untouched_by_a_generator(name):
    x = torch.randn(8, 4, generator=generator())
    before = torch.get_rng_state()
    make_selector(name)(x, condition=conditions(8), generator=generator(1))
    assert torch.equal(before, torch.get_rng_state())


def test_noise_carries_no_gradient(name):
    x = torch.randn(8, 300, generator=generator()).requires_grad_()
    assert not make_selector(name)(x, condition=conditions(8), generator=generator(1)).requires_grad


def test_pairs_are_the_same_inside_autocast():
    x = torch.randn(128, 1, 2, generator=generator()).expand(-1, 16, -1) * 0.5 + 5
    select = make_selector("linear")
    outside = select(x, generator=generator(1))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(select(x, generator=generator(1)), outside)


def test_vanilla_is_randn_and_linear_permutes_exactly_that():
    x = torch.randn(32, 16, 2, generator=generator())
    plain = torch.randn(x.shape, generator=generator(1))
    assert torch.equal(make_selector("vanilla")(x, generator=generator(1)), plain)
    paired = make_selector("linear")(x, generator=generator(1))
    rows = {tuple(row.tolist()) for row in plain.flatten(1)}
    assert {tuple(row.tolist()) for row in paired.flatten(1)} == rows and len(rows) == 32


def test_k_of_one_is_plain_noise():
    x = torch.randn(8, 4, generator=generator())
    plain = torch.randn(x.shape, generator=generator(1))
    assert torch.equal(make_selector("knn", k=1, form="literal")(x, generator=generator(1)), plain)


def test_literal_knn_keeps_the_nearest_candidate():
    x = torch.randn(8, 4, generator=generator())
    candidates = torch.randn(5, 8, 4, generator=generator(1))
    chosen = make_selector("knn", k=5, form="literal")(x, generator=generator(1))
    distances = (candidates - x).norm(dim=2)
    for i in range(8):
        assert torch.equal(chosen[i], candidates[distances[:, i].argmin(), i])


def same_law(a: torch.Tensor, b: torch.Tensor) -> None:
    assert stats.ks_2samp(a.double().numpy(), b.double().numpy()).pvalue > ALPHA


LAWS = [(1, 4, 1.0), (1, 3, 0.0), (2, 3, 0.0), (2, 8, 2.0), (32, 2, 3.0), (32, 16, 0.0), (32, 8, 20.0), (3072, 4, 30.0)]


@pytest.mark.parametrize("nearest", ["distance", "angle"])
@pytest.mark.parametrize(("dims", "k", "radius"), LAWS)
def test_projected_knn_has_the_law_of_literal_knn(dims, k, radius, nearest):
    """Both forms agree in projection on x, in norm, in distance and in single coordinates."""
    samples = 4000 if dims < 1000 else 400
    u = torch.randn(dims, generator=generator())
    x = (radius * u / u.norm()).expand(samples, dims)
    literal = make_selector("knn", k=k, nearest=nearest, form="literal")(x, generator=generator(1))
    projected = make_selector("knn", k=k, nearest=nearest, form="projected")(x, generator=generator(2))
    same_law((literal - x).norm(dim=1), (projected - x).norm(dim=1))
    same_law(literal.norm(dim=1), projected.norm(dim=1))
    same_law(literal @ u, projected @ u)
    same_law(literal[:, 0], projected[:, 0])
    same_law(literal[:, -1], projected[:, -1])


@pytest.mark.parametrize("form", ["literal", "projected"])
def test_knn_by_angle_keeps_the_law_of_the_length_and_turns_the_noise(form):
    x = torch.full((6000, 8), 0.5)
    eps = make_selector("knn", k=6, nearest="angle", form=form)(x, generator=generator())
    assert stats.kstest(eps.square().sum(dim=1).numpy(), "chi2", args=(8,)).pvalue > ALPHA
    cosine = torch.nn.functional.cosine_similarity(x, eps, dim=1)
    plain = torch.nn.functional.cosine_similarity(x, torch.randn(x.shape, generator=generator(1)), dim=1)
    best = plain.reshape(-1, 6).amax(dim=1)  # the best of 6 independent angles
    same_law(cosine, best)


@pytest.mark.parametrize("form", ["literal", "projected"])
def test_knn_by_angle_to_a_sample_without_direction_is_plain_noise(form):
    eps = make_selector("knn", k=6, nearest="angle", form=form)(torch.zeros(6000, 3), generator=generator())
    assert stats.kstest(eps.flatten().numpy(), "norm").pvalue > ALPHA
    assert stats.kstest(eps.square().sum(dim=1).numpy(), "chi2", args=(3,)).pvalue > ALPHA


@pytest.mark.parametrize("form", ["literal", "projected"])
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e3, 1e7, 1e12])
def test_knn_keeps_its_law_at_extreme_lengths(scale, form):
    """Far away only the projection on x counts: its mean is that of the larger of two normal numbers, 1 / sqrt(pi)."""
    x = (scale * torch.ones(1, 32)).expand(4000, 32)
    eps = make_selector("knn", k=2, form=form)(x, generator=generator(1))
    along = eps.double().sum(dim=1) / np.sqrt(32)
    expected = 1 / np.sqrt(np.pi) if scale > 1 else 0.0
    assert float(along.mean()) == pytest.approx(expected, abs=4.5 / np.sqrt(4000))
    assert 25 < float(eps.square().sum(dim=1).mean()) < 34


def test_auto_takes_the_literal_form_where_it_is_cheaper_and_the_other_elsewhere():
    for dims, k, form in ((32, 2, "literal"), (32, 4, "literal"), (32, 8, "projected"), (3072, 2, "projected")):
        x = torch.randn(4, dims, generator=generator())
        auto = make_selector("knn", k=k)(x, generator=generator(1))
        assert torch.equal(auto, make_selector("knn", k=k, form=form)(x, generator=generator(1)))


def test_projected_knn_at_zero_keeps_the_shortest_noise_uniform_in_direction():
    x = torch.zeros(20000, 2)
    eps = nearest_by_projection(x, None, 4, generator())
    angle = torch.atan2(eps[:, 1], eps[:, 0])
    assert stats.kstest(angle.numpy(), "uniform", args=(-np.pi, 2 * np.pi)).pvalue > ALPHA
    # The least of 4 chi-squared(2) lengths is exponential with mean 2 / 4.
    assert stats.kstest(eps.square().sum(dim=1).numpy(), "expon", args=(0, 0.5)).pvalue > ALPHA


def directions(count: int, dims: int) -> torch.Tensor:
    """Samples that lie one way as often as the other, far from isotropic and of many lengths."""
    line = torch.linspace(-1, 2, dims) + 0.3 * torch.randn(count, dims, generator=generator(8))
    turn = 1 - 2 * torch.randint(2, (count, 1), generator=generator(9))
    return line * turn * torch.rand(count, 1, generator=generator(10))


def test_sign_turns_the_noise_to_the_samples_side_and_changes_nothing_else():
    x = torch.randn(500, 4, 2, generator=generator()) + 0.5
    plain = torch.randn(x.shape, generator=generator(1))
    eps = make_selector("sign")(x, generator=generator(1))
    side = (plain * x).sum(dim=(1, 2)).sign().reshape(-1, 1, 1)
    assert torch.equal(eps, side * plain) and {-1.0, 1.0} == set(side.flatten().tolist())


def test_sign_leaves_symmetric_samples_exactly_gaussian_noise():
    """q(e) = 2 N(e) P(<e, x> > 0) = N(e) where x and -x are equally likely; other samples shift it."""
    eps = make_selector("sign")(directions(6000, 5), generator=generator())
    assert stats.kstest(eps.square().sum(dim=1).numpy(), "chi2", args=(5,)).pvalue > ALPHA
    for axis in torch.cat([torch.eye(5), torch.linspace(-1, 2, 5)[None]]):
        assert stats.kstest((eps @ (axis / axis.norm())).numpy(), "norm").pvalue > ALPHA
    one_way = make_selector("sign")(directions(6000, 5).abs(), generator=generator())
    assert stats.kstest(one_way.sum(dim=1).div(5**0.5).numpy(), "norm").pvalue < ALPHA


@pytest.mark.parametrize("dims", [1, 32])
def test_sign_correlates_as_a_half_normal_number(dims):
    """Along the sample the noise is |z|, z ~ N(0, 1), with the mean sqrt(2 / pi); across it, plain."""
    x = directions(20_000, dims)
    along = (make_selector("sign")(x, generator=generator()) * x).sum(dim=1) / x.norm(dim=1)
    assert stats.kstest(along.numpy(), "halfnorm").pvalue > ALPHA
    assert float(along.mean()) == pytest.approx((2 / np.pi) ** 0.5, abs=4 * (1 - 2 / np.pi) ** 0.5 / 20_000**0.5)


def test_sign_tells_one_bit():
    """Of two opposite samples the noise names its own: I(x; e) = H(x) = log 2, and that is all it can tell."""
    x = 1.0 - 2 * torch.randint(2, (6000, 1), generator=generator(3))
    eps = make_selector("sign")(x, generator=generator())
    assert torch.equal(eps.sign(), x) and stats.kstest(eps[:, 0].numpy(), "norm").pvalue > ALPHA
    four = x * torch.randint(1, 3, (6000, 1), generator=generator(4))  # +-1, +-2: two bits, of which it tells one
    eps = make_selector("sign")(four, generator=generator())
    same_law(eps[four == 1], eps[four == 2])


def test_sign_follows_its_schedule():
    x, plain = torch.randn(8, 3, generator=generator()), torch.randn(8, 3, generator=generator(1))
    select, whole = make_selector("sign", start=10, ramp=3), make_selector("sign")(x, generator=generator(1))
    assert torch.equal(select(x, step=9, generator=generator(1)), plain)
    half = select(x, step=11, generator=generator(1))
    assert torch.equal(half[::2], whole[::2]) and torch.equal(half[1::2], plain[1::2])
    assert torch.equal(select(x, step=13, generator=generator(1)), whole)


def test_sign_to_a_sample_without_direction_is_plain_noise():
    plain = torch.randn(8, 3, generator=generator(1))
    assert torch.equal(make_selector("sign")(torch.zeros(8, 3), generator=generator(1)), plain)


def test_what_the_mask_excludes_does_not_turn_the_noise():
    x = torch.randn(50, 6, generator=generator())
    mask = torch.arange(6) < 2
    changed, select = torch.where(mask, x, -9.0), make_selector("sign")
    assert torch.equal(select(x, mask=mask, generator=generator(1)), select(changed, mask=mask, generator=generator(1)))


@pytest.mark.parametrize("form", ["literal", "projected"])
def test_masked_numbers_keep_plain_noise_and_the_rest_the_law_of_the_rest(form):
    x = torch.full((6000, 5), 2.0)
    mask = torch.tensor([True, False, True, True, False])
    eps = make_selector("knn", k=4, form=form)(x, mask=mask, generator=generator())
    alone = make_selector("knn", k=4, form="literal")(x[:, mask], generator=generator(1))
    same_law((eps - x)[:, mask].norm(dim=1), (alone - 2.0).norm(dim=1))
    assert stats.kstest(eps[:, 1].numpy(), "norm").pvalue > ALPHA
    assert stats.kstest(eps[:, 4].numpy(), "norm").pvalue > ALPHA


@pytest.mark.parametrize("form", ["literal", "projected"])
def test_a_sample_that_is_masked_out_whole_gets_plain_noise(form):
    eps = make_selector("knn", k=4, form=form)(
        torch.ones(4000, 3), mask=torch.zeros(3, dtype=torch.bool), generator=generator()
    )
    assert stats.kstest(eps.flatten().numpy(), "norm").pvalue > ALPHA


def test_selection_shortens_distances_in_the_expected_order():
    x = torch.randn(256, 32, generator=generator())

    def mean_distance(name, **options):
        return float((make_selector(name, **options)(x, generator=generator(1)) - x).norm(dim=1).mean())

    vanilla = mean_distance("vanilla")
    assert mean_distance("knn", k=8) < mean_distance("knn", k=2) < vanilla
    assert mean_distance("linear") < vanilla


def test_knn_alone_means_k_of_two():
    x = torch.randn(8, 4, generator=generator())
    two = make_selector("knn", k=2)(x, generator=generator(1))
    assert torch.equal(make_selector("knn")(x, generator=generator(1)), two)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_selector("knm"), "unknown noise 'knm'; did you mean 'knn'"),
        (lambda: make_selector("knn", k=0), "k=0"),
        (lambda: make_selector("knn", k=10**9), "k=1000000000"),
        (lambda: make_selector("knn", k=2.5), "k=2.5"),
        (lambda: make_selector("knn", k=True), "k=True"),
        (lambda: make_selector("vanilla", k=2), "noise=vanilla has no k"),
        (lambda: make_selector("linear", k=2), "noise=linear has no k"),
        (lambda: make_selector("sign", k=2), "noise=sign has no k"),
        (lambda: make_selector("sign", stop=0), "stop=0: must come after start=0"),
        (lambda: make_selector("linear", cost="cosine"), "cost=cosine"),
        (lambda: make_selector("knn", form="fast"), "form=fast"),
        (lambda: make_selector("knn", nearest="far"), "nearest=far"),
        (lambda: make_selector("knn", start=-1), "start=-1"),
        (lambda: make_selector("knn", start=5, stop=5), "stop=5: must come after start=5"),
        (lambda: make_selector("linear", ramp=0.5), "ramp=0.5"),
        (lambda: make_selector("linear", pool=0), "pool=0"),
        (lambda: make_selector("linear", potentials=3), "potentials=3: needs what fit_potentials returns"),
        (lambda: make_selector("idp26", k=2), "noise=idp26 has no k"),
        (lambda: make_selector("c2ot", k=2), "noise=c2ot has no k"),
        (lambda: make_selector("c2ot", weight=-1.0), "weight=-1.0"),
        (lambda: make_selector("c2ot", weight=".inf"), "weight=.inf: needs a number"),
        (lambda: make_selector("c2ot", weight=True), "weight=True"),
        (lambda: make_selector("c2ot", ratio="abc"), "ratio=abc"),
        (lambda: make_selector("c2ot", ratio=None), "ratio=None"),
        (lambda: make_selector(None), "None is not a name"),
        (lambda: make_selector("c2ot", weight=float("nan")), "weight=nan"),
        (lambda: make_selector("c2ot", ratio=0.0), "ratio=0.0"),
        (lambda: make_selector("c2ot", condition_cost="l1"), "condition_cost=l1"),
    ],
)
def test_unusable_options_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.zeros(0, 4), {}, r"\(0, 4\)"),
        (torch.zeros(4), {}, r"\(4,\)"),
        (torch.zeros(4, 2, dtype=torch.long), {}, "int64"),
        (torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]), {}, "nan in sample 1"),
        (torch.tensor([[float("inf"), 1.0], [0.0, 0.0]]), {}, "inf in sample 0"),
        (torch.zeros(4, 2), {"condition": torch.zeros(3, 1)}, r"condition has shape \(3, 1\)"),
        (torch.zeros(4, 2), {"mask": torch.zeros(3, dtype=torch.bool)}, r"mask has shape \(3,\)"),
        (torch.zeros(4, 2), {"mask": torch.zeros(2)}, "mask has dtype"),
        (np.zeros((4, 2)), {}, "x is of type ndarray"),
        (torch.zeros(4, 2), {"condition": [1, 2, 3, 4]}, "condition is of type list"),
        (torch.full((4, 2), 3e38), {}, "too large to measure in sample 0, up to 3e"),
    ],
)
def test_unusable_input_is_refused_by_every_selector(name, x, options, message):
    options = {"condition": torch.zeros(len(x), 1)} | options
    with pytest.raises(ValueError, match=message):
        make_selector(name)(x, generator=generator(), **options)


def test_what_the_mask_excludes_may_hold_anything(name):
    x = torch.zeros(4, 3)
    x[:, 2] = float("nan")
    mask = torch.tensor([True, True, False])
    assert torch.isfinite(make_selector(name)(x, condition=conditions(4), mask=mask, generator=generator())).all()


def test_whole_numbers_of_numpy_are_whole_numbers():
    x = torch.randn(8, 4, generator=generator())
    numpy = make_selector("knn", k=np.int64(4), start=np.int32(0))(x, generator=generator(1))
    assert torch.equal(numpy, make_selector("knn", k=4)(x, generator=generator(1)))


def test_the_layout_in_memory_does_not_matter(name):
    x = torch.randn(200, 12, generator=generator()).T
    select = make_selector(name)
    assert torch.equal(select(x, condition=conditions(12), generator=generator(1)),
                       select(x.contiguous(), condition=conditions(12), generator=generator(1)))  # fmt: skip


def test_a_schedule_needs_the_step(name):
    if name == "vanilla":
        pytest.skip("vanilla has no schedule")
    select = make_selector(name, start=10)
    with pytest.raises(ValueError, match="step is missing"):
        select(torch.zeros(4, 2), condition=torch.zeros(4, 1))


class Largest(TorchDispatchMode):
    """Watches every operation and remembers the largest tensor that one yields."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [item for item in (result if isinstance(result, tuple) else (result,)) if torch.is_tensor(item)]
        self.numel = max([self.numel, *(item.numel() for item in tensors)])
        return result


@pytest.mark.parametrize(
    ("name", "options", "most"),
    [
        ("vanilla", {}, 64 * 512),
        ("knn", {"k": 200}, 64 * 512),  # nothing of k * D numbers per sample
        ("sign", {}, 64 * 512),
        ("linear", {}, 64 * 512),  # nothing of B * D numbers per sample
        ("idp26", {}, 64 * 512),
        ("c2ot", {}, 64 * 512),
        ("linear", {"pool": 16}, 16 * 64 * 512),
    ],
)
def test_memory_stays_proportional_to_the_batch(name, options, most):
    x = torch.randn(64, 512, generator=generator())
    with Largest() as largest:
        make_selector(name, **options)(x, condition=conditions(64), generator=generator(1))
    assert 64 * 512 <= largest.numel <= most


@pytest.mark.gpu
def test_selectors_on_cuda_stay_there_and_accept_a_cpu_generator(name):
    x = torch.randn(64, 32, device="cuda")
    eps = make_selector(name)(x, condition=conditions(64).cuda())
    assert eps.device == x.device and torch.isfinite(eps).all()
    assert make_selector(name)(x, condition=conditions(64).cuda(), generator=generator()).device == x.device


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["vanilla", "knn", "sign"])
@pytest.mark.parametrize("options", [{}, {"mask": torch.arange(32) % 3 > 0}])
def test_selection_on_cuda_never_waits_for_the_device(name, options):
    x = torch.randn(64, 32, device="cuda")
    options = {key: value.cuda() for key, value in options.items()}
    select = make_selector(name, k=16) if name == "knn" else make_selector(name)
    select(x, **options)
    torch.cuda.set_sync_debug_mode("error")
    try:
        select(x, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("nearest", ["distance", "angle"])
def test_projected_knn_on_cuda_has_the_law_of_literal_knn(nearest):
    x = torch.full((4000, 32), 0.7)
    literal = make_selector("knn", k=8, nearest=nearest, form="literal")(x, generator=generator(1))
    source = torch.Generator("cuda").manual_seed(2)
    projected = make_selector("knn", k=8, nearest=nearest, form="projected")(x.cuda(), generator=source).cpu()
    same_law((literal - x).norm(dim=1), (projected - x).norm(dim=1))
    same_law(literal.norm(dim=1), projected.norm(dim=1))
    same_law(literal.sum(dim=1), projected.sum(dim=1))


@pytest.mark.gpu
def test_nan_on_cuda_becomes_nan_noise_of_that_sample_alone():
    x = torch.randn(8, 200, device="cuda")
    x[3, 7] = float("nan")
    eps = make_selector("knn", k=4)(x)
    assert torch.isnan(eps[3]).all() and torch.isfinite(eps[torch.arange(8) != 3]).all()
