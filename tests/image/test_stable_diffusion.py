"""Stable Diffusion: noising and loss by hand, what selectors see, prompts, sampling against an exact denoiser."""

import json
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from immiscible_policy.image.model import ImageModel, TextSample
from immiscible_policy.image.stable_diffusion import Latents, load_chain, load_text, load_vae
from immiscible_policy.image.tiny import tiny_stable_diffusion
from immiscible_policy.noise import SELECTORS, make_selector
from immiscible_policy.solver import Solver
from tests.docs.pages import ROOT
from tests.random_numbers import generator

ALPHA_BARS = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
PREDICTIONS = pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
NAMES = ["cat", "bird", "cat", "fire truck", "bird", "cat"]


class Linear(torch.nn.Module):
    """A stand-in for the U-Net: weight * x_t + t / 1000 + the mean of the text's embeddings."""

    def __init__(self, weight: float = 0.5):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))
        self.rows = []

    def forward(self, x, t, encoder_hidden_states):
        self.rows.append(len(x))
        shift = t / 1000 + encoder_hidden_states.mean(dim=(1, 2))
        return SimpleNamespace(sample=self.weight * x + shift.view(-1, 1, 1, 1))


class OnePoint(torch.nn.Module):
    """The exact prediction for data that is one latent: eps = (x_t - a x) / s, v = a eps - s x."""

    def __init__(self, latent, prediction: str):
        super().__init__()
        self.latent, self.prediction = latent, prediction

    def forward(self, x, t, encoder_hidden_states):
        a2 = ALPHA_BARS.to(x)[t].view(-1, 1, 1, 1)
        a, s = a2.sqrt(), (1 - a2).sqrt()
        eps = (x - a * self.latent) / s
        return SimpleNamespace(sample=eps if self.prediction == "epsilon" else a * eps - s * self.latent)


class Watching:
    """Vanilla noise, with a record of what it was asked."""

    def __call__(self, x, **given):
        self.x, self.given = x, given
        self.noise = torch.randn(x.shape, generator=given["generator"])
        return self.noise


def pictures(count: int = 6, seed: int = 0) -> torch.Tensor:
    coarse = torch.rand(count, 3, 8, 8, generator=generator(seed)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bilinear")


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    words = ["cat", "bird", "fire truck"]
    root = tmp_path_factory.mktemp("pretrained")
    return {name: tiny_stable_diffusion(root / name, words, name) for name in ("epsilon", "v_prediction")}


@pytest.fixture
def model(directories):
    def build(denoiser=None, prediction="epsilon", data_scale=1.0, precision="fp32", **options):
        place = directories[prediction]
        latents = Latents(load_vae(place), 64, data_scale=data_scale, precision=precision)
        parts = {"solver": Solver("ddim", 50), "text": load_text(place, precision), "guidance": 7.5} | options
        return ImageModel(load_chain(place), denoiser or Linear(), latents, **parts)

    return build


def noised(model, select=None, seed=0, prompts=None, count=6):
    select = select or make_selector("vanilla")
    return model.noised(pictures(count), select, step=3, generator=generator(seed), prompts=prompts)


def test_the_denoiser_alone_is_trained_and_saved(model):
    model = model()
    assert [name for name, _ in model.named_parameters()] == ["denoiser.weight"]
    assert list(model.state_dict()) == ["denoiser.weight"]
    frozen = [*model.coder.vae.parameters(), *model.text.encoder.parameters()]
    assert len(frozen) > 50 and not any(parameter.requires_grad for parameter in frozen)
    model.train()
    assert not model.coder.vae.training and not model.text.encoder.training


def test_the_ready_made_parts_move_with_the_model(model):
    model = model().to("meta")
    for parameter in (*model.parameters(), *model.coder.vae.parameters(), *model.text.encoder.parameters()):
        assert parameter.device.type == "meta"


@PREDICTIONS
@pytest.mark.parametrize("data_scale", [1.0, 2.0])
def test_noised_batch_and_loss_by_hand(model, prediction, data_scale):
    """With x = c (mean + std e): x_t = a x + s eps; the target is eps, or a eps - s x; the loss a mean of squares."""
    model, select = model(Linear(0.7), prediction, data_scale), Watching()
    batch = noised(model, select, prompts=NAMES)

    posterior = model.coder.vae.encode(pictures()).latent_dist
    e = torch.randn(6, 4, 8, 8, generator=generator())
    x = model.coder.vae.config.scaling_factor * data_scale * (posterior.mean + posterior.std * e)
    torch.testing.assert_close(select.x, x)

    a2 = ALPHA_BARS.float()[batch.t].view(-1, 1, 1, 1)
    a, s = a2.sqrt(), (1 - a2).sqrt()
    target = select.noise if prediction == "epsilon" else a * select.noise - s * x
    torch.testing.assert_close(batch.noisy, a * x + s * select.noise, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(batch.target, target, rtol=1e-4, atol=1e-5)

    shift = batch.t / 1000 + batch.text.mean(dim=(1, 2))
    by_hand = (0.7 * batch.noisy + shift.view(-1, 1, 1, 1) - target).square().mean()
    torch.testing.assert_close(model.loss(batch), by_hand, rtol=1e-4, atol=1e-5)


def test_the_loss_is_measured_in_float32_whatever_the_forward_pass_computes_in(model):
    model = model()
    batch = noised(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.loss(batch).dtype == torch.float32


def test_latents_of_natural_scale_and_their_inverse(model):
    """The scaling factor brings latents to a deviation of 1, data_scale to more; decoding undoes both."""
    plain, doubled = model().coder, model(data_scale=2.0).coder
    x, twice = plain.encode(pictures(40), generator()), doubled.encode(pictures(40), generator())
    assert float(x.std()) == pytest.approx(1, abs=0.2)
    torch.testing.assert_close(twice, 2 * x)
    torch.testing.assert_close(doubled.decode(twice), plain.decode(x))
    z = x / plain.vae.config.scaling_factor
    torch.testing.assert_close(plain.decode(x), plain.vae.decode(z).sample.clamp(-1, 1), rtol=1e-4, atol=1e-5)


def test_the_posteriors_noise_comes_from_the_generator_and_has_the_posteriors_width(model):
    latents = model().coder
    first, again, other = (latents.encode(pictures(40), generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert float((first - other).std()) == pytest.approx(0.05 * 2**0.5, rel=0.05)  # tiny.py's width


def test_arithmetic_in_bfloat16_changes_latents_and_embeddings_little(model):
    exact, rough = model(), model(precision="bf16")
    latents = [model.coder.encode(pictures(), generator()) for model in (exact, rough)]
    assert latents[1].dtype == torch.float32 and not torch.equal(*latents)
    torch.testing.assert_close(*latents, rtol=0, atol=0.1)
    torch.testing.assert_close(exact.text(NAMES).tokens, rough.text(NAMES).tokens, rtol=0, atol=0.1)


def test_selectors_see_latents_step_and_pooled_prompts(model):
    model, select = model(), Watching()
    noised(model, select, prompts=NAMES)
    assert select.x.shape == (6, *model.coder.shape) == (6, 4, 8, 8)
    assert select.given["step"] == 3
    condition = select.given["condition"]
    assert torch.equal(condition, model.text(NAMES).pooled)
    assert torch.equal(condition[0], condition[2]) and not torch.allclose(condition[0], condition[1], atol=1e-2)


def test_c2ot_pairs_by_prompt_and_says_so_where_there_are_none(model):
    """With infinite weight noise travels between equal prompts only: groups keep their own noises."""
    model, names = model(), ["cat"] * 8 + ["bird"] * 8
    c2ot, vanilla = make_selector("c2ot", weight=float("inf")), make_selector("vanilla")
    chosen, plain = (noised(model, select, prompts=names, count=16).target.flatten(1) for select in (c2ot, vanilla))
    for group in (slice(0, 8), slice(8, 16)):
        assert torch.equal(chosen[group, 0].sort().values, plain[group, 0].sort().values)
    assert not torch.equal(chosen, plain)
    with pytest.raises(ValueError, match="condition is missing"):
        noised(model, c2ot)


def test_nearest_of_64_noises_enters(model):
    """KNN's noise lies nearer to the latents than plain noise does."""
    model, seen = model(), Watching()
    plain = noised(model, seen, count=64).target
    chosen = noised(model, make_selector("knn", k=64), count=64).target
    distances = [(noise - seen.x).flatten(1).norm(dim=1).mean() for noise in (chosen, plain)]
    assert float(distances[0] / distances[1]) < 0.95


@PREDICTIONS
@pytest.mark.parametrize("data_scale", [1.0, 2.0])
@pytest.mark.parametrize("selector", SELECTORS)
def test_allowed_combinations_train_and_sample(model, selector, data_scale, prediction):
    """Three steps on the same noise and times, then every solver; c2ot pairs by prompt."""
    model, losses = model(prediction=prediction, data_scale=data_scale, guidance=2.0), []
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        loss = model.loss(noised(model, make_selector(selector), prompts=NAMES))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[2] < losses[0]
    start = torch.randn(2, 4, 8, 8, generator=generator(1))
    for solver in model.path.solvers:
        sample = model.sample(start, model.choose(solver, 3), prompts=["cat", "bird"], generator=generator(2))
        assert sample.images.shape == (2, 3, 64, 64) and sample.predicted.shape == (3, 2, 4, 8, 8)
        assert sample.images.isfinite().all()


def test_noising_is_a_function_of_the_generator(model):
    model = model(prompt_dropout=0.5, noise_offset=0.1)
    knn = make_selector("knn", k=8)
    first, again, other = (noised(model, knn, seed, NAMES) for seed in (0, 0, 1))
    for field, same, different in zip(first, again, other, strict=True):
        assert torch.equal(field, same) and not torch.equal(field, different)


def test_steps_are_uniform_over_the_chain(model):
    t = torch.cat([noised(model(), seed=seed, count=50).t for seed in range(20)]).double()
    assert t.min() >= 0 and t.max() <= 999
    assert float(t.mean()) == pytest.approx(499.5, abs=4 * 288.7 / 1000**0.5)
    assert float(t.std()) == pytest.approx(288.7, rel=0.1)


def test_the_assignment_spans_the_whole_batch_though_micro_batches_are_cut_from_it(model):
    """The noise is the whole batch's, reordered; in each half alone there are others than the half drew."""
    model, linear = model(), make_selector("linear")
    plain, whole = noised(model, count=16), noised(model, linear, count=16)
    order = [int((plain.target == row).all(dim=(1, 2, 3)).nonzero()) for row in whole.target]
    assert sorted(order) == list(range(16)) and sorted(order[:8]) != list(range(8))
    halves = [TextSample(*fields) for fields in zip(*(field.split(8) for field in whole), strict=True)]
    torch.testing.assert_close(sum(model.loss(half) for half in halves) / 2, model.loss(whole))


def test_noise_offset_is_one_number_per_image_and_channel_added_after_selection(model):
    select = Watching()
    offset = noised(model(noise_offset=0.3), select, count=128).target - select.noise
    torch.testing.assert_close(offset, offset[:, :, :1, :1].expand_as(offset), rtol=0, atol=1e-5)
    numbers = offset[:, :, 0, 0]
    assert float(numbers.std()) == pytest.approx(0.3, rel=0.1)
    assert abs(float(numbers.mean())) < 4 * 0.3 / numbers.numel() ** 0.5


def test_no_prompts_are_the_empty_prompt(model):
    model, select = model(), Watching()
    batch = noised(model, select)
    tokens = model.text.tokenizer("", padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        empty = model.text.encoder(tokens).last_hidden_state
    torch.testing.assert_close(batch.text, empty.expand(6, -1, -1))
    assert select.given["condition"] is None
    torch.testing.assert_close(batch.text, noised(model, prompts=[""] * 6).text)


def test_each_distinct_prompt_is_embedded_once(model, monkeypatch):
    text, rows = model().text, []
    encode = text._encode
    monkeypatch.setattr(text, "_encode", lambda tokens: rows.append(len(tokens)) or encode(tokens))
    result = text(NAMES)
    assert rows == [3]
    for row, name in enumerate(NAMES):
        torch.testing.assert_close(result.tokens[row], text([name]).tokens[0])
        torch.testing.assert_close(result.pooled[row], text([name]).pooled[0])


def test_long_prompts_are_cut_to_the_encoders_length(model):
    text = model().text
    torch.testing.assert_close(text(["cat " * 80]).tokens, text(["cat " * 75]).tokens)
    assert not torch.allclose(text(["cat " * 74]).tokens, text(["cat " * 75]).tokens, atol=1e-3)


def test_prompts_are_embedded_from_several_threads(model):
    text = model().text
    expected = text(NAMES).pooled
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: text(NAMES).pooled, range(40)):
            torch.testing.assert_close(result, expected)


def test_dropped_prompts_become_the_empty_one_for_the_network_and_the_selector(model):
    model, select = model(prompt_dropout=0.25), Watching()
    batch = noised(model, select, prompts=["cat"] * 400, count=400)
    cat, empty = model.text(["cat"]), model.text([""])
    dropped = (batch.text == empty.tokens).all(dim=2).all(dim=1)
    assert float(dropped.float().mean()) == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 400) ** 0.5)
    torch.testing.assert_close(batch.text[~dropped], cat.tokens.expand(int((~dropped).sum()), -1, -1))
    torch.testing.assert_close(select.given["condition"], torch.where(dropped[:, None], empty.pooled, cat.pooled))


@PREDICTIONS
def test_ddim_by_hand_with_one_training_latent(model, prediction):
    """Every step predicts that latent x, and so does the last, which ends at it."""
    point = torch.randn(1, 4, 8, 8, generator=generator(5))
    model = model(OnePoint(point, prediction), prediction)
    start = torch.randn(3, 4, 8, 8, generator=generator(1))
    result = model.sample(start, Solver("ddim", 25))
    assert result.t.tolist() == list(range(999, 0, -40))
    torch.testing.assert_close(result.predicted, point.expand(25, 3, -1, -1, -1), rtol=0, atol=1e-3)
    torch.testing.assert_close(result.images, model.coder.decode(point.expand(3, -1, -1, -1)), rtol=0, atol=1e-3)
    assert result.images.abs().max() <= 1


@PREDICTIONS
def test_pndm_is_diffusers_own_with_20_steps(model, prediction):
    """The grid of v1's scheduler, whose second time is visited twice; 3% of the noise is left at its end, t = 0."""
    latent = torch.randn(4, 8, 8, generator=generator(3))
    sampled = model(OnePoint(latent, prediction), prediction)
    times, network = [], sampled.denoiser.forward

    def watched(x, t, encoder_hidden_states):
        times.append(int(t[0]))
        return network(x, t, encoder_hidden_states)

    sampled.denoiser.forward = watched
    solver = sampled.choose("pndm")
    noise = torch.randn(2, 4, 8, 8, generator=generator(1))
    end = sampled.sample(noise, solver).predicted[-1]
    assert solver.steps == 20 and times == [951, 901, 901, *range(851, 0, -50)]
    torch.testing.assert_close(end, latent.expand(2, -1, -1, -1), rtol=0, atol=0.15)
    with pytest.raises(ValueError, match="eta=0.5: solver=pndm has no eta"):
        sampled.choose("pndm", eta=0.5)


def test_guidance_by_hand(model):
    """A single step predicts x = (x_t - s eps) / a with eps = empty + w (prompted - empty)."""
    model, start = model(Linear(), guidance=3.0), torch.randn(2, 4, 8, 8, generator=generator())
    shift = [model.text(names).tokens.mean(dim=(1, 2)).view(-1, 1, 1, 1) for names in (["", ""], ["cat", "bird"])]
    eps = 0.5 * start + 999 / 1000 + shift[0] + 3.0 * (shift[1] - shift[0])
    by_hand = (start - (1 - ALPHA_BARS[999]).sqrt() * eps) / ALPHA_BARS[999].sqrt()
    result = model.sample(start, Solver("ddim", 1), prompts=["cat", "bird"]).predicted[0]
    torch.testing.assert_close(result, by_hand.float(), rtol=1e-4, atol=1e-5)


def test_guidance_of_one_asks_the_network_once_and_of_none_ignores_prompts(model):
    start = torch.randn(2, 4, 8, 8, generator=generator())
    plain, ignoring, twice = model(guidance=1.0), model(guidance=0.0), Solver("ddim", 2)
    plain.sample(start, twice, prompts=["cat", "bird"])
    plain.sample(start, twice)
    assert plain.denoiser.rows == [2, 2, 2, 2]
    ignored = ignoring.sample(start, twice, prompts=["cat", "bird"]).images
    torch.testing.assert_close(ignored, plain.sample(start, twice).images, rtol=0, atol=1e-4)


def test_sampling_takes_50_steps_unless_told_otherwise(model):
    assert len(model().sample(torch.zeros(1, 4, 8, 8)).t) == 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data_scale": 0.0}, "data_scale=0.0"),
        ({"data_scale": float("nan")}, "data_scale=nan"),
        ({"noise_offset": -0.1}, "noise_offset=-0.1"),
        ({"prompt_dropout": 1.5}, "prompt_dropout=1.5"),
        ({"guidance": float("inf")}, "guidance=inf"),
    ],
)
def test_numbers_out_of_range_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        model(**options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction_type": "flow"}, "prediction_type=flow"),
        ({"beta_end": 0.013}, "beta_schedule=scaled_linear in scheduler_config.json, .*0.013"),
        ({"beta_schedule": "cosine"}, "beta_schedule=cosine"),
        ({"rescale_betas_zero_snr": True}, "beta_schedule=scaled_linear"),
    ],
)
def test_a_chain_of_another_kind_is_refused(directories, tmp_path, change, message):
    config = json.loads((directories["epsilon"] / "scheduler/scheduler_config.json").read_text())
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler/scheduler_config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message) as refused:
        load_chain(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("shape", [(2, 1, 64, 64), (2, 3, 32, 32), (3, 64, 64)])
def test_pixels_of_another_shape_are_refused(model, shape):
    with pytest.raises(ValueError, match=r"RGB images \(B, 3, 64, 64\)"):
        model().noised(torch.zeros(shape), make_selector("vanilla"), step=0, generator=generator())


@pytest.mark.parametrize("steps", [0, 1001])
def test_steps_that_the_chain_has_not_are_refused(model, steps):
    with pytest.raises(ValueError, match=f"sampling_steps={steps}"):
        model().choose(steps=steps)


def test_too_few_prompts_are_refused(model):
    with pytest.raises(ValueError, match="2 prompts for 6 images"):
        noised(model(), prompts=["cat", "bird"])
    with pytest.raises(ValueError, match="1 prompts for 2 images"):
        model().sample(torch.zeros(2, 4, 8, 8), prompts=["cat"])


def test_the_published_distances_of_assignment_stand_beside_the_others():
    """Of arXiv 2505.18521 and 2406.12303, from scratch and fine-tuned; in both less than KNN's and vanilla's."""
    page = (ROOT / "docs" / "stable-diffusion.md").read_text()
    rows = [line.split("|")[2:5] for line in page.splitlines() if ": FID |" in line]
    distances = [[float(number) for number in row] for row in rows]
    assert distances == [[17.92, 16.84, 16.43], [11.45, 10.38, 10.28]]
    assert all(vanilla > knn > assignment for vanilla, knn, assignment in distances)
