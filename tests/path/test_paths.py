"""How clean sample and noise meet: by hand, and back again."""

import pytest
import torch

from immiscible_policy.path import PREDICTIONS, Ddpm, Flow, Regression
from tests.path.analytic import squared_cosine_alphas, target
from tests.random_numbers import generator

PATHS = [*(Ddpm(100, prediction=prediction) for prediction in PREDICTIONS), Flow(), Flow("sample")]
NAMES = [*PREDICTIONS, "flow", "flow of the sample"]


def pair(rows=6):
    source = generator()
    return (torch.randn(rows, 16, 2, generator=source), torch.randn(rows, 16, 2, generator=source))


def test_the_chain_is_the_published_schedule():
    torch.testing.assert_close(Ddpm(100).alphas_cumprod.double(), squared_cosine_alphas(100), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_a_point_of_the_path_by_hand(path):
    clean, noise = pair()
    t = path.times(6, generator(1))
    sample = path.sample(clean, noise, t)
    alphas = squared_cosine_alphas(100)[t].sqrt() if isinstance(path, Ddpm) else t.double()
    sigmas = (1 - squared_cosine_alphas(100)[t]).sqrt() if isinstance(path, Ddpm) else 1 - t.double()
    alpha, sigma = alphas[:, None, None], sigmas[:, None, None]
    torch.testing.assert_close(sample.noisy.double(), alpha * clean + sigma * noise, rtol=1e-3, atol=1e-4)
    learned = target(path, clean.double(), noise.double(), alpha, sigma)
    torch.testing.assert_close(sample.target.double(), learned, rtol=1e-3, atol=1e-4)
    for ours, by_hand in zip(path.coefficients(t), (alphas, sigmas), strict=True):
        torch.testing.assert_close(ours.double(), by_hand, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_the_target_splits_into_clean_sample_and_noise(path):
    """For one level at all rows, as solvers ask, and for a level per row."""
    clean, noise = (values.double() for values in pair())
    t = path.times(6, generator(1))
    alpha, sigma = (values.double() for values in path.coefficients(t))
    rows = [alpha[:, None, None], sigma[:, None, None]]
    noisy = rows[0] * clean + rows[1] * noise
    learned = target(path, clean, noise, *rows)
    split = path.split(learned.clone(), noisy, *rows)
    torch.testing.assert_close(split.clean, clean)
    torch.testing.assert_close(split.noise, noise)
    for i in range(6):
        alone = path.split(learned[i].clone(), noisy[i], float(alpha[i]), float(sigma[i]))
        torch.testing.assert_close(alone.clean, clean[i])
        torch.testing.assert_close(alone.noise, noise[i])


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_the_loss_of_a_network_that_says_nothing_is_the_mean_square_of_the_target(path):
    sample = path.sample(*pair(), path.times(6, generator(1)))
    loss = path.loss(lambda noisy, t: torch.zeros_like(noisy), sample)
    assert float(loss) == pytest.approx(float(sample.target.square().mean()), rel=1e-6)
    assert float(path.loss(lambda noisy, t: sample.target, sample)) == 0


def test_every_step_of_the_chain_is_trained_and_flow_times_fill_the_unit_interval():
    assert set(Ddpm(100).times(4000, generator(1)).tolist()) == set(range(100))
    t = Flow().times(4000, generator(1))
    assert 0 <= float(t.min()) < 0.001 and 0.999 < float(t.max()) < 1
    assert float(t.mean()) == pytest.approx(0.5, abs=0.02)


def test_logit_normal_times_are_sigmoids_of_normal_numbers():
    t = Flow(law="logit_normal").times(4000, generator(1))
    normal = (t / (1 - t)).log()
    assert float(normal.mean()) == pytest.approx(0, abs=0.05) and float(normal.std()) == pytest.approx(1, abs=0.03)


def test_min_snr_weighs_the_error_of_the_clean_sample_alike_whatever_is_predicted():
    clean, noise = pair()
    t = torch.tensor([0, 10, 40, 60, 90, 99])
    losses = []
    for prediction in PREDICTIONS:
        path = Ddpm(100, prediction=prediction, min_snr=5.0)
        alpha, sigma = (values[:, None, None] for values in path.coefficients(t))
        sample = path.sample(clean, noise, t)
        wrong = clean + 0.1 * alpha.new_ones(clean.shape)  # the same clean sample, in each prediction's terms
        said = target(path, wrong, (sample.noisy - alpha * wrong) / sigma, alpha, sigma)
        losses.append(float(path.loss(lambda noisy, t, said=said: said, sample)))
    snr = squared_cosine_alphas(100)[t] / (1 - squared_cosine_alphas(100)[t])
    by_hand = float((snr.clamp(max=5) * 0.01).mean())
    assert losses == pytest.approx([by_hand] * 3, rel=1e-2)


def test_the_network_is_told_chain_steps_and_thousandths():
    reported = []

    def network(noisy, t):
        reported.append(t)
        return noisy

    Ddpm(100).evaluate(network, torch.zeros(2, 16, 2), torch.tensor([3, 99]))
    Flow().evaluate(network, torch.zeros(2, 16, 2), torch.tensor([0.25, 0.5]))
    Regression((0, 0.9)).evaluate(network, torch.zeros(2, 16, 2), torch.tensor([0, 0.9]))
    assert [t.tolist() for t in reported] == [[3, 99], [250, 500], [0, 90]]


def test_grids_by_hand():
    chain = Ddpm(100)
    assert [level.t for level in chain.levels(5, "trailing")] == [99, 79, 59, 39, 19]
    assert [level.t for level in chain.levels(5, "leading")] == [80, 60, 40, 20, 0]
    assert [level.t for level in chain.levels(1, "trailing")] == [99]
    assert [level.t for level in chain.levels(3, "leading")] == [66, 33, 0]
    assert [level.t for level in Ddpm(1000).levels(2, "trailing")] == [999, 499]
    assert Flow().levels(4, "trailing") == [(0, 0, 1), (250, 0.25, 0.75), (500, 0.5, 0.5), (750, 0.75, 0.25)]
    shifted = [level.alpha for level in Flow().levels(3, "shifted")]
    assert shifted == pytest.approx([0, 3 / 5, 6 / 7])  # t / (t + (1 - t) / 3) at 0, 1/3, 2/3
    assert [level.t for level in Regression((0, 0.9)).levels(7, "trailing")] == [0, 90]


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Ddpm(0), "diffusion_steps=0"),
        (lambda: Ddpm(10, prediction="noise"), "prediction=noise: choose from epsilon, sample, v_prediction"),
        (lambda: Ddpm(10, betas="cosine"), "betas=cosine"),
        (lambda: Ddpm(10, min_snr=0.0), "min_snr=0.0"),
        (lambda: Flow("epsilon"), "prediction=epsilon: flow matching predicts velocity or sample"),
        (lambda: Flow(law="cosine"), "times=cosine: choose from uniform, logit_normal"),
        (lambda: Ddpm(10).levels(11, "trailing"), "sampling_steps=11: the chain has 10 diffusion steps"),
        (lambda: Ddpm(10).levels(2, "linear"), "spacing=linear: choose trailing or leading"),
        (lambda: Flow().levels(2, "leading"), "spacing=leading"),
        (lambda: Regression((0.5,)), "times"),
        (lambda: Regression((0, 1)), "times"),
    ],
)
def test_mistakes_are_named(build, words):
    with pytest.raises(ValueError, match=words):
        build()
