"""Image diffusion: noising and loss by hand, DDIM against analytic denoisers, checkpoints, the objective."""

from types import SimpleNamespace

import pytest
import torch

from immiscible_policy.image.build import ImageSpec, build_image_diffusion, load_image_diffusion, spec_metadata
from immiscible_policy.image.data import to_pixels
from immiscible_policy.image.diffusion import ImageDiffusion
from immiscible_policy.image.objective import ImageObjective
from immiscible_policy.noise import make_selector
from immiscible_policy.training.checkpoint import CheckpointError, read_checkpoint, save_checkpoint

ALPHA_BARS = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
SPEC = ImageSpec(size=8, channels=(8, 16), layers=1, attention=(False, True), groups=4)
STDS = pytest.mark.parametrize("data_std", [0.25, 0.5, 2.0])


class GaussianDenoiser(torch.nn.Module):
    """The exact noise prediction for data N(mean, std^2) in every number, as diffused.

    With x_t = a x_0 + s e, E[e | x_t] = s (x_t - a mean) / (a^2 std^2 + s^2).
    """

    def __init__(self, mean, std: float):
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, x, t):
        a2 = ALPHA_BARS.to(x)[t].view(-1, 1, 1, 1)
        s2 = 1 - a2
        return SimpleNamespace(sample=s2.sqrt() * (x - a2.sqrt() * self.mean) / (a2 * self.std**2 + s2))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@STDS
def test_noised_batch_by_hand(data_std):
    """x_t = sqrt(abar_t) x + sqrt(1 - abar_t) eps with x = pixels * data_std / 0.5, for which eps is chosen."""
    model, pixels, seen = ImageDiffusion(GaussianDenoiser(0, 1), data_std=data_std), torch.rand(6, 3, 8, 8) * 2 - 1, {}

    def select(x, **given):
        seen.update(x=x, step=given["step"])
        return torch.randn(x.shape, generator=given["generator"])

    noisy, noise, t = model.noised(pixels, select, step=7, generator=generator())
    torch.testing.assert_close(seen["x"], pixels * data_std / 0.5)
    assert seen["step"] == 7
    a2 = ALPHA_BARS.float()[t].view(-1, 1, 1, 1)
    torch.testing.assert_close(noisy, a2.sqrt() * seen["x"] + (1 - a2).sqrt() * noise, rtol=1e-4, atol=1e-5)


def test_pixels_of_standard_deviation_one_half_come_to_data_std():
    pixels = 0.5 * torch.randn(20, 3, 32, 32, generator=generator())
    for data_std in (0.25, 0.5, 4.0):
        assert float((ImageDiffusion(torch.nn.Identity(), data_std=data_std).scale * pixels).std()) == pytest.approx(
            data_std, rel=0.02
        )


def test_loss_by_hand():
    """A denoiser that always says 3: the loss is the mean of (3 - eps)^2."""
    model = ImageDiffusion(GaussianDenoiser(0, 1))
    model.denoiser.forward = lambda x, t: SimpleNamespace(sample=torch.full_like(x, 3.0))
    batch = model.noised(torch.zeros(4, 3, 8, 8), make_selector("vanilla"), generator=generator())
    torch.testing.assert_close(model.loss(batch), (3 - batch.noise).square().mean())


@STDS
def test_with_one_training_image_every_layer_predicts_it(data_std):
    """For data that is one image, the exact denoiser implies that image at every step, from any noise."""
    pixels = torch.rand(1, 3, 8, 8, generator=generator()) * 1.8 - 0.9
    model = ImageDiffusion(GaussianDenoiser(pixels * data_std / 0.5, 0.0), data_std=data_std)
    found = model.sample(torch.randn(4, 3, 8, 8, generator=generator(1)), steps=20)
    torch.testing.assert_close(found.images, pixels.expand(4, -1, -1, -1), rtol=0, atol=2e-3)
    torch.testing.assert_close(found.predicted, pixels.expand(20, 4, -1, -1, -1), rtol=0, atol=2e-2)


@STDS
def test_ddim_recovers_the_law_of_gaussian_data(data_std):
    """Pixels N(0.1, 0.2^2): the samples have this mean and spread, and follow the start noise."""
    scale = data_std / 0.5
    model = ImageDiffusion(GaussianDenoiser(0.1 * scale, 0.2 * scale), data_std=data_std)
    noise = torch.randn(64, 3, 8, 8, generator=generator())
    found = model.sample(noise, steps=500).images
    torch.testing.assert_close(found, 0.1 + 0.2 * noise, rtol=0, atol=0.03)


def test_ddim_is_a_function_of_the_start_noise_alone():
    model = build_image_diffusion(SPEC).eval()
    noise = torch.randn(5, 3, 8, 8, generator=generator())
    found = model.sample(noise, steps=10)
    torch.manual_seed(99)
    again = model.sample(noise, steps=10)
    assert torch.equal(found.images, again.images) and torch.equal(found.predicted, again.predicted)
    torch.testing.assert_close(model.sample(noise[2:3], steps=10).images, found.images[2:3], rtol=1e-3, atol=1e-4)


def test_the_layers_are_linearly_spaced_and_the_last_prediction_is_the_sample():
    model = build_image_diffusion(SPEC).eval()
    found = model.sample(torch.randn(2, 3, 8, 8, generator=generator()), steps=4)
    assert found.t.tolist() == [999, 749, 499, 249]
    assert found.predicted.shape == (4, 2, 3, 8, 8)
    torch.testing.assert_close(found.predicted[-1], found.images)


@STDS
def test_the_first_layers_prediction_by_hand(data_std):
    model = ImageDiffusion(build_image_diffusion(SPEC).denoiser, data_std=data_std).eval()
    noise = torch.randn(3, 3, 8, 8, generator=generator())
    t = torch.full((3,), 499)
    with torch.no_grad():
        eps = model.predicted_noise(noise, t)
    a2 = ALPHA_BARS[499].float()
    by_hand = ((noise - (1 - a2).sqrt() * eps) / a2.sqrt() / (data_std / 0.5)).clamp(-1, 1)
    torch.testing.assert_close(model.predicted_clean(noise, eps, t), by_hand, rtol=1e-4, atol=1e-4)
    scheduler = model.ddim(2)
    from_scheduler = scheduler.step(eps, torch.tensor(499), noise, return_dict=False)[1] / model.scale
    torch.testing.assert_close(from_scheduler, by_hand, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("data_std", [0.0, -1.0, float("nan"), float("inf")])
def test_a_data_std_that_is_no_positive_number_is_refused(data_std):
    with pytest.raises(ValueError, match="data_std="):
        ImageDiffusion(torch.nn.Identity(), data_std=data_std)


@pytest.mark.parametrize("steps", [0, 30, 2000])
def test_steps_that_the_chain_does_not_divide_into_are_refused(steps):
    with pytest.raises(ValueError, match=f"sampling_steps={steps}"):
        ImageDiffusion(torch.nn.Identity()).sample(torch.zeros(1, 3, 8, 8), steps)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 9}, "size=9"),
        ({"attention": (True,)}, "attention="),
        ({"channels": (8, 18)}, r"channels=\[18\]"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        build_image_diffusion(ImageSpec(**SPEC.__dict__ | change))


def test_a_checkpoint_rebuilds_the_model_with_its_ema_weights(tmp_path):
    trained, averaged = (build_image_diffusion(ImageSpec(**SPEC.__dict__ | {"data_std": 2.0})) for _ in range(2))
    spec = ImageSpec(**SPEC.__dict__ | {"data_std": 2.0})
    tensors = {"model": trained.state_dict(), "ema": averaged.state_dict()}
    save_checkpoint(tmp_path / "step_000001", spec_metadata(spec) | {"step": 1}, tensors)
    model, found = load_image_diffusion(read_checkpoint(tmp_path / "step_000001"))
    assert found == spec and model.data_std == 2.0 and not model.training
    for name, tensor in averaged.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    weights = build_image_diffusion(SPEC).state_dict()
    save_checkpoint(tmp_path / "step_000001", {"policy": {}, "step": 1}, {"ema": weights})
    with pytest.raises(CheckpointError, match="describes no image model"):
        load_image_diffusion(read_checkpoint(tmp_path / "step_000001"))
    wider = ImageSpec(**SPEC.__dict__ | {"channels": (16, 16)})
    save_checkpoint(tmp_path / "step_000002", spec_metadata(wider) | {"step": 2}, {"ema": weights})
    with pytest.raises(CheckpointError, match="do not fit"):
        load_image_diffusion(read_checkpoint(tmp_path / "step_000002"))


def objective(select, seed=0) -> ImageObjective:
    images = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8, generator=generator())
    model = ImageDiffusion(GaussianDenoiser(0, 1))
    return ImageObjective(model, images, select, batch_size=8, seed=seed)


def test_batches_are_a_function_of_seed_and_step():
    knn = make_selector("knn", k=4)
    first, again = objective(knn).batches(3)[0], objective(knn).batches(3)[0]
    for field, other in zip(first, again, strict=True):
        assert torch.equal(field, other)
    assert not torch.equal(first.noise, objective(knn).batches(4)[0].noise)
    assert not torch.equal(first.noise, objective(knn, seed=1).batches(3)[0].noise)


def test_half_of_the_images_are_mirrored():
    """Without noise x_t / sqrt(abar_t) is the image, or its mirror image."""
    silent = objective(lambda x, **_: torch.zeros_like(x))
    mirrored = []
    for step in range(40):
        batch = silent.batches(step)[0]
        shown = batch.noisy / ALPHA_BARS.float()[batch.t].sqrt().view(-1, 1, 1, 1)
        plain = to_pixels(silent.images[silent.order.rows(step)])
        gaps = torch.stack([(shown - each).abs().amax(dim=(1, 2, 3)) for each in (plain, plain.flip(-1))])
        assert float(gaps.amin(dim=0).max()) < 1e-3
        mirrored.append(gaps[1] < gaps[0])
    assert float(torch.cat(mirrored).float().mean()) == pytest.approx(0.5, abs=0.1)
