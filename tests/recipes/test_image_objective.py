"""The image objective: what its batches are made of."""

import pytest
import torch

from immiscible_policy.image.data import Images, to_pixels
from immiscible_policy.noise import make_selector
from immiscible_policy.recipes.image import ImageObjective
from tests.image.mixture import ALPHA_BARS
from tests.image.specs import model_of


def objective(select, seed=0, **options) -> ImageObjective:
    stored = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model = model_of("ddim", torch.nn.Linear(1, 1))
    options = {"accumulate": 1, "flip": True, "batch_size": 8} | options
    return ImageObjective(model, Images(stored, 8, "hash"), select, seed=seed, **options)


def test_batches_are_a_function_of_seed_and_step():
    knn = make_selector("knn", k=4)
    first, again = objective(knn).batches(3)[0], objective(knn).batches(3)[0]
    for field, other in zip(first, again, strict=True):
        assert torch.equal(field, other)
    assert not torch.equal(first.target, objective(knn).batches(4)[0].target)
    assert not torch.equal(first.target, objective(knn, seed=1).batches(3)[0].target)


def test_half_of_the_images_are_mirrored():
    """Without noise x_t / sqrt(abar_t) is the image, or its mirror image."""
    silent = objective(lambda x, **_: torch.zeros_like(x))
    mirrored = []
    for step in range(40):
        batch = silent.batches(step)[0]
        shown = batch.noisy / ALPHA_BARS.float()[batch.t].sqrt().view(-1, 1, 1, 1)
        plain = to_pixels(silent.images.pixels(silent.order.rows(step)))
        gaps = torch.stack([(shown - item).abs().amax(dim=(1, 2, 3)) for item in (plain, plain.flip(-1))])
        assert float(gaps.amin(dim=0).max()) < 1e-3
        mirrored.append(gaps[1] < gaps[0])
    assert float(torch.cat(mirrored).float().mean()) == pytest.approx(0.5, abs=0.1)


def test_micro_batches_are_the_batch_in_parts():
    """Everything random is drawn for the whole batch, so that accumulation changes nothing in it."""
    linear = make_selector("linear")
    (whole,) = objective(linear).batches(2)
    parts = objective(linear, accumulate=4).batches(2)
    assert [len(part.t) for part in parts] == [2, 2, 2, 2]
    for field, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(field, torch.cat(pieces))


def test_without_flips_no_image_is_mirrored():
    silent = objective(lambda x, **_: torch.zeros_like(x), flip=False)
    (batch,) = silent.batches(0)
    plain = to_pixels(silent.images.pixels(silent.order.rows(0)))
    shown = batch.noisy / ALPHA_BARS.float()[batch.t].sqrt().view(-1, 1, 1, 1)
    torch.testing.assert_close(shown, plain, rtol=1e-3, atol=1e-3)


def test_noise_is_assigned_within_all_batches_that_choose_together():
    """Two batches of 8 are one batch of 16 in parts, in whatever order they are prepared."""
    linear = make_selector("linear")
    together, whole = objective(linear, select_over=2), objective(linear, batch_size=16)
    batches = [together.batches(step)[0] for step in (4, 5)]
    for field, pieces in zip(whole.batches(2)[0], zip(*batches, strict=True), strict=True):
        assert torch.equal(field, torch.cat(pieces))
    again = objective(linear, select_over=2)
    for step in (5, 4):
        for field, other in zip(again.batches(step)[0], batches[step - 4], strict=True):
            assert torch.equal(field, other)
