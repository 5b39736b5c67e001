"""Editing: the mask's geometry, known pixels that come back, and the two ends, nothing and everything known."""

from types import SimpleNamespace

import pytest
import torch

from immiscible_policy.image.build import ImageSpec, build_image_model
from immiscible_policy.image.diffusion import ImageDiffusion
from immiscible_policy.image.editing import _diffusion_answer, _knowing, edit_mask, fill_in, latent_mask
from immiscible_policy.image.flow import FlowMatching

SPEC = ImageSpec(
    "ddim", size=8, channels=(8, 16), layers=1, attention=(False, True), groups=4, data_scale=2.0, training_steps=10
)
CASES = pytest.mark.parametrize(("kind", "steps"), [("ddim", 10), ("flow", 7), ("flow", None)])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model(kind: str):
    """A network whose answers are of the size of noise, and follow what it sees."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = build_image_model(ImageSpec(**SPEC.__dict__ | {"model": kind})).eval()
        torch.nn.init.normal_(built.denoiser.conv_out.weight, std=0.3)
    return built


def originals(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 8, 8, generator=generator(1)) * 2 - 1


def noises(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=generator(2))


def test_masks_by_hand():
    centre = torch.tensor([[row in (2, 3, 4, 5) and col in (2, 3, 4, 5) for col in range(8)] for row in range(8)])
    assert torch.equal(edit_mask("inpaint", 8), centre)
    assert torch.equal(edit_mask("outpaint", 8), ~centre)
    assert edit_mask("inpaint", 32).sum() == 16 * 16


@pytest.mark.parametrize(("edit", "size", "message"), [("crop", 8, "edit=crop: known"), ("inpaint", 10, "size=10")])
def test_unusable_masks_are_refused(edit, size, message):
    with pytest.raises(ValueError, match=message):
        edit_mask(edit, size)


@CASES
@pytest.mark.parametrize("edit", ["inpaint", "outpaint"])
def test_known_pixels_come_back_and_others_are_the_models(kind, steps, edit):
    pixels, mask = originals(), edit_mask(edit, 8)
    found = fill_in(model(kind), pixels, mask, noises(), steps)
    assert torch.equal(found[..., ~mask], pixels[..., ~mask])
    assert float((found - pixels)[..., mask].abs().mean()) > 0.1
    assert found.abs().max() <= 1


@CASES
def test_the_path_itself_leads_back_to_known_pixels(kind, steps):
    """Before anything is pasted: at every step the known part predicts the original."""
    built, pixels, mask = model(kind), originals(), edit_mask("inpaint", 8)
    x0, x1 = noises(), built.data_scale * pixels
    answer = _diffusion_answer(built.noising, x1) if kind == "ddim" else lambda noisy, t: x1 - x0
    with _knowing(built.denoiser, answer, mask):
        found = built.sample(x0, steps)
    for predicted in (found.images, *found.predicted):
        torch.testing.assert_close(predicted[..., ~mask], pixels[..., ~mask], rtol=0, atol=1e-3)


@CASES
def test_with_nothing_known_editing_is_plain_sampling(kind, steps):
    built, everything = model(kind), torch.ones(8, 8, dtype=torch.bool)
    assert torch.equal(fill_in(built, originals(), everything, noises(), steps), built.sample(noises(), steps).images)


@CASES
def test_with_everything_known_editing_returns_the_original(kind, steps):
    nothing = torch.zeros(8, 8, dtype=torch.bool)
    assert torch.equal(fill_in(model(kind), originals(), nothing, noises(), steps), originals())


@CASES
def test_what_is_filled_in_follows_what_is_known_and_the_noise(kind, steps):
    built, mask = model(kind), edit_mask("inpaint", 8)
    found = fill_in(built, originals(), mask, noises(), steps)
    for other in (
        fill_in(built, -originals(), mask, noises(), steps),
        fill_in(built, originals(), mask, -noises(), steps),
    ):
        assert float((found - other)[..., mask].abs().mean()) > 1e-3
    assert torch.equal(found, fill_in(built, originals(), mask, noises(), steps))


@pytest.mark.parametrize("kind", ["ddim", "flow"])
def test_a_model_of_a_single_image_fills_in_that_image(kind):
    """The exact network for data that is one image m: whatever is known, the rest is m's."""
    image = originals(1)

    class Network(torch.nn.Module):
        def forward(self, x, t):
            if kind == "flow":  # v = (m - x) / (1 - t)
                return SimpleNamespace(sample=(image - x) / (1 - t / 1000).view(-1, 1, 1, 1))
            return SimpleNamespace(sample=_diffusion_answer(built.noising, image.expand(len(x), -1, -1, -1))(x, t))

    built = {"ddim": ImageDiffusion, "flow": FlowMatching}[kind](Network(), size=8)
    mask = edit_mask("outpaint", 8)
    known = torch.full((2, 3, 8, 8), 0.5)
    found = fill_in(built, known, mask, noises(2), 10)
    torch.testing.assert_close(found, torch.where(mask, image, known), rtol=0, atol=1e-3)


def test_velocity_and_noise_are_two_answers_to_the_same_question():
    """x_t = a x + s e: from e one gets back x_t, from v = a e - s x likewise x = a x_t - s v."""
    x, noise, t = originals(), noises(), torch.tensor([0, 500, 999])
    chain = model("ddim").noising
    noisy = chain.add_noise(x, noise, t)
    torch.testing.assert_close(_diffusion_answer(chain, x)(noisy, t), noise, rtol=1e-3, atol=1e-3)
    velocities = SimpleNamespace(
        alphas_cumprod=chain.alphas_cumprod, config=SimpleNamespace(prediction_type="v_prediction")
    )
    v = _diffusion_answer(velocities, x)(noisy, t)
    a2 = chain.alphas_cumprod[t].view(-1, 1, 1, 1)
    torch.testing.assert_close(a2.sqrt() * noisy - (1 - a2).sqrt() * v, x, rtol=1e-3, atol=1e-3)


def test_the_network_is_itself_again_even_after_a_failure():
    built, mask = model("ddim"), edit_mask("inpaint", 8)
    before = built.sample(noises(), 5).images
    with pytest.raises(ValueError, match="sampling_steps=7"):
        fill_in(built, originals(), mask, noises(), 7)
    assert torch.equal(built.sample(noises(), 5).images, before)


def test_a_consistency_model_is_refused():
    with pytest.raises(ValueError, match="ConsistencyModel cannot edit"):
        fill_in(model("consistency"), originals(), edit_mask("inpaint", 8), noises())


def test_latents_see_the_mask_at_their_resolution():
    assert torch.equal(latent_mask(edit_mask("inpaint", 32), 2), edit_mask("inpaint", 16))
    with pytest.raises(ValueError, match="fall within latents of 8 pixels"):
        latent_mask(edit_mask("inpaint", 16), 8)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_stable_diffusion_edits_latents(tmp_path, prediction):
    pytest.importorskip("transformers")
    from immiscible_policy.image.stable_diffusion import StableDiffusionSpec
    from tests.image.tiny import tiny_stable_diffusion

    directory = tiny_stable_diffusion(tmp_path / "tiny", ["cat", "dog"], prediction)
    built = build_image_model(StableDiffusionSpec(str(directory), size=64)).eval()
    pixels = torch.rand(2, 3, 64, 64, generator=generator()) * 2 - 1
    noise = torch.randn(2, *built.noise_shape, generator=generator())
    words = {"prompts": ["cat", "dog"]}
    everything = torch.ones(64, 64, dtype=torch.bool)
    plain = built.sample(noise, 4, **words).images
    assert torch.equal(fill_in(built, pixels, everything, noise, 4, **words, generator=generator(3)), plain)

    latents = built.latents.encode(pixels, generator(3))
    with _knowing(built.denoiser, _diffusion_answer(built.noising, latents), edit_mask("inpaint", 8)):
        predicted = built.sample(noise, 4, **words).predicted
    known = ~edit_mask("inpaint", 8)
    for layer in predicted:
        torch.testing.assert_close(layer[..., known], latents[..., known], rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="needs a generator"):
        fill_in(built, pixels, edit_mask("inpaint", 64), noise, 4, **words)
