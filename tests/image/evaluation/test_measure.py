"""Start noises, the distance of a set to itself, and sets that are too small."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from immiscible_policy.image.build import build_image_model
from immiscible_policy.image.data import to_pixels
from immiscible_policy.image.data.images import in_memory
from immiscible_policy.image.evaluation.clip import real_scores
from immiscible_policy.image.evaluation.features import make_extractor
from immiscible_policy.image.evaluation.measure import Drawing, SolverWords, draw, make_reference, measure, start_noise
from immiscible_policy.image.model import ImageSample
from immiscible_policy.randomness import torch_generator
from tests.image.evaluation.distances import feature_distance
from tests.image.specs import tiny_spec

SHAPE = (3, 16, 16)
COUNT = 150


class Stub:
    """Answers start noises with images by a rule, and keeps what it was given."""

    coder = SimpleNamespace(shape=SHAPE)

    def __init__(self, rule):
        self.rule, self.seen = rule, []

    def choose(self, *words):
        return words

    def sample(self, noise, solver, *, prompts=None, generator=None):
        self.seen.append(SimpleNamespace(noise=noise, solver=solver, prompts=prompts))
        return ImageSample(self.rule(noise), noise.unsqueeze(0), torch.zeros(1))


@pytest.fixture(scope="module")
def extractor():
    return make_extractor("classifier")


@pytest.fixture(scope="module")
def images():
    """Smooth random pictures with prompts."""
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(2 * COUNT, 3, 4, 4, generator=generator) * 255
    pictures = torch.nn.functional.interpolate(small, size=16, mode="bilinear").to(torch.uint8)
    return in_memory(pictures, 16, [f"picture {number}" for number in range(2 * COUNT)])


def drawing(**changes) -> Drawing:
    asked = dict(n=COUNT, solver=SolverWords(steps=5), seed=0, batch_size=64, device="cpu", edit=None)
    return Drawing(**asked | changes)


def test_a_start_noise_is_a_function_of_its_number_and_the_seed():
    whole = start_noise(SHAPE, torch.arange(10), 3)
    assert torch.equal(start_noise(SHAPE, torch.tensor([7, 2]), 3), whole[[7, 2]])
    assert not torch.equal(start_noise(SHAPE, torch.arange(10), 4), whole)
    many = start_noise(SHAPE, torch.arange(200), 0)
    assert float(many.mean()) == pytest.approx(0, abs=0.015) and float(many.std()) == pytest.approx(1, abs=0.01)


def test_images_are_numbered_and_batches_change_nothing(images):
    model = Stub(lambda noise: (noise / 3).clamp(-1, 1))
    small, large = ([*draw(model, drawing(batch_size=size), images)] for size in (17, 150))
    assert torch.equal(torch.cat([part for part, _ in small]), large[0][0])
    assert [prompt for _, prompts in small for prompt in prompts] == [f"picture {number}" for number in range(COUNT)]
    assert {call.solver for call in model.seen} == {(None, 5, "trailing", 0.0)}


def test_prompts_begin_again_where_there_are_fewer(images):
    few = in_memory(images.held[:4], 16, ["a", "b", "c", "d"])
    [(_, prompts)] = draw(Stub(lambda noise: noise), drawing(n=6), few)
    assert prompts == ["a", "b", "c", "d", "a", "b"]


def test_the_distance_of_a_set_to_itself_is_zero(images, extractor):
    """A model that returns the reference itself."""
    reference = make_reference(extractor, images, COUNT, 0)
    pixels = iter(to_pixels(images.held).split(64))
    result = measure(Stub(lambda noise: next(pixels)[: len(noise)]), drawing(n=2 * COUNT), images, extractor,
                    reference.statistics, None)  # fmt: skip
    assert result.distance == pytest.approx(0, abs=1e-4 * reference.noise)
    assert torch.equal(result.shown, images.held[:64])


def test_real_images_are_nearer_than_noise_and_a_model_of_noise_is_as_far_as_noise(images, extractor):
    reference = make_reference(extractor, images, COUNT, 0)
    assert 0 < reference.floor < reference.noise / 10
    result = measure(Stub(lambda noise: 0.5 * noise), drawing(), images, extractor, reference.statistics, None)
    assert result.distance == pytest.approx(reference.noise)


def test_the_floor_takes_images_from_the_reference_and_compares_them_with_the_rest(images, extractor):
    order = torch.randperm(2 * COUNT, generator=torch_generator("cpu", "reference", 5))
    features = extractor.features(images.held)
    by_hand = feature_distance(features[order[:COUNT]], features[order[COUNT:]])
    assert make_reference(extractor, images, COUNT, 5).floor == pytest.approx(by_hand, rel=1e-4)
    assert make_reference(extractor, images, 2 * COUNT - 50, 5).floor is None


@pytest.mark.parametrize(("n", "limit", "message"), [(96, 200, "samples=96"), (97, 96, "reference images=96")])
def test_too_few_images_for_the_features_are_refused(images, extractor, n, limit, message):
    with pytest.raises(ValueError, match=f"{message}: the 96 features of classifier need 97 or more"):
        make_reference(extractor, in_memory(images.held[:limit], 16), n, 0)


@pytest.mark.gpu
@pytest.mark.parametrize("edit", [None, "inpaint", "invert"])
def test_images_on_cuda_are_those_on_the_cpu(images, edit):
    """Start noises are drawn on the CPU, and DDIM draws no more: pixels differ by rounding alone."""
    model, asked = build_image_model(tiny_spec(size=16)), drawing(n=20, edit=edit)
    (on_cpu, _), *_ = draw(model, asked, images)
    (on_cuda, _), *_ = draw(model.to("cuda"), replace(asked, device="cuda"), images)
    assert on_cuda.device.type == "cuda" and on_cpu.float().std() > 20
    assert (on_cuda.cpu().int() - on_cpu.int()).abs().max() <= 3


def test_a_model_that_diverged_is_refused(images):
    with pytest.raises(ValueError, match="draws NaN"):
        next(draw(Stub(lambda noise: noise / 0), drawing(), images))


def test_clipscore_is_the_mean_over_images_and_needs_prompts(images, extractor):
    class Length:
        source = "length"

        def scores(self, images, prompts):
            return torch.tensor([float(len(prompt)) for prompt in prompts])

    statistics = make_reference(extractor, images, COUNT, 0).statistics
    result = measure(Stub(lambda noise: noise), drawing(), images, extractor, statistics, Length())
    assert result.clip_score == pytest.approx((10 * 9 + 90 * 10 + 50 * 11) / 150)
    with pytest.raises(ValueError, match="clip= needs prompts"):
        bare = in_memory(images.held, 16)
        measure(Stub(lambda noise: noise), drawing(), bare, extractor, statistics, Length())


def test_scores_of_real_images_with_their_own_prompts_and_with_others():
    """Images of one grey each, prompts that name it; the model scores 100 less the distance."""

    class Grey:
        def scores(self, images, prompts):
            named = torch.tensor([float(prompt) for prompt in prompts])
            return 100 - (images.float().mean(dim=(1, 2, 3)) - named).abs()

    greys = [10, 30, 20, 90]
    pictures = torch.tensor(greys, dtype=torch.uint8)[:, None, None, None].expand(4, 3, 16, 16)
    real = real_scores(Grey(), in_memory(pictures, 16, [str(grey) for grey in greys]), 9, batch_size=3)
    assert real.own == pytest.approx(100)
    assert real.others == pytest.approx(100 - (20 + 10 + 70 + 80) / 4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (SolverWords(), "best"),
        (SolverWords(steps=50), "50"),
        (SolverWords("ddpm", 100, "leading"), "100 leading ddpm"),
        (SolverWords("ddim", None, "trailing", 0.5), "best ddim eta 0.5"),
    ],
)
def test_rows_say_how_images_were_sampled(words, said):
    assert words.words == said
