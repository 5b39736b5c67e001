"""Editing: the region's geometry, known pixels that come back, and the two ends, nothing and everything known."""

from types import SimpleNamespace

import pytest
import torch

from immiscible_policy.image.build import build_image_model
from immiscible_policy.image.editing import KnownPath, edit_region, latent_region, redraw
from immiscible_policy.image.editing import fill_in as fill
from immiscible_policy.solver import Solver
from tests.image.mixture import ALPHA_BARS
from tests.image.specs import model_of, tiny_spec, tiny_stable_diffusion_spec
from tests.random_numbers import generator

DDIM, EULER = Solver("ddim", 10), Solver("euler", 7)
ADAPTIVE = pytest.param("flow", None, marks=pytest.mark.slow)  # hundreds of calls
CASES = pytest.mark.parametrize(("kind", "solver"), [("ddim", DDIM), ("flow", EULER), ADAPTIVE])
OTHERS = [("ddim", Solver("ddpm", 10)), ("ddim", Solver("dpmpp", 10)), ("flow", Solver("heun", 9)),
          ("v_prediction", DDIM), ("sample", DDIM)]  # fmt: skip
A, S = ALPHA_BARS.sqrt(), (1 - ALPHA_BARS).sqrt()
ALL = pytest.mark.parametrize(("kind", "solver"), [("ddim", DDIM), ("flow", EULER), ADAPTIVE, *OTHERS])


def model(kind: str):
    """A network whose answers are of the size of noise, and follow what it sees."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        changes = {} if kind in ("ddim", "flow", "consistency") else {"prediction": kind}
        built = build_image_model(tiny_spec("ddim" if changes else kind, data_scale=2.0, **changes)).eval()
        torch.nn.init.normal_(built.denoiser.conv_out.weight, std=0.3)
    return built


def fill_in(model, pixels, region, noise, solver=None, **words):
    return fill(model, pixels, region, noise, solver, **{"generator": generator(4)} | words)


def originals(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 8, 8, generator=generator(1)) * 2 - 1


def noises(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=generator(2))


def test_masks_by_hand():
    centre = torch.tensor([[row in (2, 3, 4, 5) and col in (2, 3, 4, 5) for col in range(8)] for row in range(8)])
    assert torch.equal(edit_region("inpaint", 8), centre)
    assert torch.equal(edit_region("outpaint", 8), ~centre)
    assert edit_region("inpaint", 32).sum() == 16 * 16


def test_images_are_drawn_again_from_the_noise_that_is_found():
    """A network that predicts nothing of what it sees is inverted exactly; a solver without steps is refused."""
    still = model("flow")
    torch.nn.init.zeros_(still.denoiser.conv_out.weight)  # the velocity is a constant
    again = redraw(still, originals(), EULER, generator=generator())
    torch.testing.assert_close(again, originals(), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="say sampling_steps=50"):
        redraw(still, originals(), generator=generator())
    with pytest.raises(ValueError, match="cannot edit"):
        redraw(model("consistency"), originals(), generator=generator())


@pytest.mark.parametrize(("edit", "size", "message"), [("crop", 8, "edit=crop: choose"), ("inpaint", 10, "size=10")])
def test_unusable_masks_are_refused(edit, size, message):
    with pytest.raises(ValueError, match=message):
        edit_region(edit, size)


@ALL
@pytest.mark.parametrize("edit", ["inpaint", "outpaint"])
def test_known_pixels_come_back_and_others_are_the_models(kind, solver, edit):
    pixels, region = originals(), edit_region(edit, 8)
    result = fill_in(model(kind), pixels, region, noises(), solver)
    assert torch.equal(result[..., ~region], pixels[..., ~region])
    assert float((result - pixels)[..., region].abs().mean()) > 0.1
    assert result.abs().max() <= 1


@ALL
def test_the_path_itself_leads_back_to_known_pixels(kind, solver):
    """Before anything is pasted: at every step the known part predicts the original."""
    built, pixels, region = model(kind), originals(), edit_region("inpaint", 8)
    path = KnownPath(built.path, built.coder.data_scale * pixels, region, noises())
    result = built.sample(noises(), solver, path=path, generator=generator())
    for predicted in (result.images, *(result.predicted / built.coder.data_scale)):
        torch.testing.assert_close(predicted[..., ~region], pixels[..., ~region], rtol=0, atol=1e-3)


@CASES
def test_with_nothing_known_editing_is_plain_sampling(kind, solver):
    built, everything = model(kind), torch.ones(8, 8, dtype=torch.bool)
    assert torch.equal(fill_in(built, originals(), everything, noises(), solver), built.sample(noises(), solver).images)


@ALL
def test_with_everything_known_editing_returns_the_original(kind, solver):
    nothing = torch.zeros(8, 8, dtype=torch.bool)
    assert torch.equal(fill_in(model(kind), originals(), nothing, noises(), solver), originals())


@CASES
def test_what_is_filled_in_follows_what_is_known_and_the_noise(kind, solver):
    built, region = model(kind), edit_region("inpaint", 8)
    result = fill_in(built, originals(), region, noises(), solver)
    for other in (
        fill_in(built, -originals(), region, noises(), solver),
        fill_in(built, originals(), region, -noises(), solver),
    ):
        assert float((result - other)[..., region].abs().mean()) > 1e-3
    assert torch.equal(result, fill_in(built, originals(), region, noises(), solver))


@pytest.mark.parametrize("kind", ["ddim", "flow"])
def test_a_model_of_a_single_image_fills_in_that_image(kind):
    """The exact network for data that is one image m: whatever is known, the rest is m's."""
    image = originals(1)

    class Network(torch.nn.Module):
        def forward(self, x, t):
            if kind == "flow":  # v = (m - x) / (1 - t)
                return SimpleNamespace(sample=(image - x) / (1 - t / 1000).view(-1, 1, 1, 1))
            alpha, sigma = (values[t].view(-1, 1, 1, 1).float() for values in (A, S))
            return SimpleNamespace(sample=(x - alpha * image) / sigma)

    built = model_of(kind, Network())
    region = edit_region("outpaint", 8)
    known = torch.full((2, 3, 8, 8), 0.5)
    result = fill_in(built, known, region, noises(2), Solver("ddim", 10))
    torch.testing.assert_close(result, torch.where(region, image, known), rtol=0, atol=1e-3)


def test_the_known_part_meets_one_noise_along_the_whole_path():
    """x_T is the start noise, so that e = (x_T - a_T x) / s_T; at every later level the known part is a x + s e."""
    built, pixels, region, seen = model("ddim"), originals(), edit_region("inpaint", 8), []
    built.denoiser.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    fill_in(built, pixels, region, noises(), DDIM)
    clean = 2 * pixels
    e = (noises() - A[999] * clean) / S[999]
    for x, t in zip(seen, range(999, 0, -100), strict=True):
        torch.testing.assert_close(x[..., ~region], (A[t] * clean + S[t] * e)[..., ~region].float(), rtol=0, atol=1e-3)


def test_a_consistency_model_is_refused():
    with pytest.raises(ValueError, match="a consistency model cannot edit"):
        fill_in(model("consistency"), originals(), edit_region("inpaint", 8), noises())


def test_latents_see_the_mask_at_their_resolution():
    assert torch.equal(latent_region(edit_region("inpaint", 32), 2), edit_region("inpaint", 16))
    with pytest.raises(ValueError, match="fall within latents of 8 pixels"):
        latent_region(edit_region("inpaint", 16), 8)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_stable_diffusion_edits_latents(tmp_path, prediction):
    pytest.importorskip("transformers")
    from immiscible_policy.image.tiny import tiny_stable_diffusion

    directory = tiny_stable_diffusion(tmp_path / "tiny", ["cat", "dog"], prediction)
    built = build_image_model(tiny_stable_diffusion_spec(directory)).eval()
    pixels = torch.rand(2, 3, 64, 64, generator=generator()) * 2 - 1
    noise = torch.randn(2, *built.coder.shape, generator=generator())
    words = {"prompts": ["cat", "dog"]}
    everything = torch.ones(64, 64, dtype=torch.bool)
    four = Solver("ddim", 4)
    plain = built.sample(noise, four, **words).images
    assert torch.equal(fill_in(built, pixels, everything, noise, four, **words), plain)

    latents, known = built.coder.encode(pixels, generator(3)), ~edit_region("inpaint", 8)
    path = KnownPath(built.path, latents, ~known, noise)
    for layer in built.sample(noise, four, **words, path=path).predicted:
        torch.testing.assert_close(layer[..., known], latents[..., known], rtol=0, atol=1e-3)
    edited = fill_in(built, pixels, edit_region("inpaint", 64), noise, four, **words)
    assert edited.shape == pixels.shape and not torch.equal(edited, plain)
