"""The denoiser: parity with the published architecture, and its algebra."""

import pytest
import torch

from immiscible_policy.network.unet import (
    ConditionalUnet1d,
    FilmResidualBlock,
    SinusoidalEmbedding,
    downsample,
    upsample,
)


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_paper_size_has_the_published_number_of_parameters():
    assert parameters(ConditionalUnet1d(2, 2 * 20)) == 65_783_298


def test_image_size_denoiser_has_the_published_number_of_parameters():
    image_condition = 2 * (2 * 32 + 2)  # two steps of 32 spatial-softmax points and the agent's position
    unet = ConditionalUnet1d(2, image_condition, step_embed_dim=128, down_dims=(512, 1024, 2048))
    assert parameters(unet) == 251_511_938


def test_cpu_size_has_the_calibrated_number_of_parameters():
    assert parameters(ConditionalUnet1d(2, 40, step_embed_dim=128, down_dims=(64, 128, 256))) == 4_559_554


def published_names(levels: int) -> dict[str, None]:
    """State-dict keys of the published conditional U-Net, from its description (no local condition)."""

    def conv(prefix):
        return [f"{prefix}.{part}" for part in ("weight", "bias")]

    def residual(prefix, widens):
        keys = []
        for i in (0, 1):
            keys += conv(f"{prefix}.blocks.{i}.block.0") + conv(f"{prefix}.blocks.{i}.block.1")
        keys += conv(f"{prefix}.cond_encoder.1")
        return keys + (conv(f"{prefix}.residual_conv") if widens else [])

    keys = conv("diffusion_step_encoder.1") + conv("diffusion_step_encoder.3")
    for i in range(levels):
        keys += residual(f"down_modules.{i}.0", True) + residual(f"down_modules.{i}.1", False)
        keys += conv(f"down_modules.{i}.2.conv") if i < levels - 1 else []
    for i in (0, 1):
        keys += residual(f"mid_modules.{i}", False)
    for i in range(levels - 1):
        keys += residual(f"up_modules.{i}.0", True) + residual(f"up_modules.{i}.1", False)
        keys += conv(f"up_modules.{i}.2.conv")
    return dict.fromkeys(keys + conv("final_conv.0.block.0") + conv("final_conv.0.block.1") + conv("final_conv.1"))


def test_state_dict_names_are_the_published_ones():
    unet = ConditionalUnet1d(2, 40, step_embed_dim=16, down_dims=(16, 32, 64))
    assert unet.state_dict().keys() == published_names(3).keys()


def test_shapes_of_the_published_layout():
    state = ConditionalUnet1d(2, 40).state_dict()
    assert state["diffusion_step_encoder.1.weight"].shape == (1024, 256)
    assert state["down_modules.0.0.blocks.0.block.0.weight"].shape == (256, 2, 5)
    assert state["down_modules.1.0.cond_encoder.1.weight"].shape == (1024, 256 + 40)
    assert state["up_modules.0.0.blocks.0.block.0.weight"].shape == (512, 2048, 5)
    assert state["up_modules.1.2.conv.weight"].shape == (256, 256, 4)


def test_rows_do_not_see_each_other():
    unet = ConditionalUnet1d(2, 4, step_embed_dim=8, down_dims=(8, 16), groups=4)
    x, c, t = torch.randn(4, 8, 2), torch.randn(4, 4), torch.tensor([0, 30, 60, 99])
    alone = torch.cat([unet(x[i : i + 1], t[i : i + 1], c[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(unet(x, t, c), alone, rtol=1e-4, atol=1e-5)


def test_film_scales_and_shifts_as_written():
    """A block returns residual + second(scale * first + bias)."""
    block = FilmResidualBlock(4, 4, film_dim=3, kernel_size=3, groups=2).double()
    x, film = torch.randn(2, 4, 5).double(), torch.randn(2, 8).double()
    scale, bias = film.chunk(2, dim=1)
    hidden = scale[:, :, None] * block.blocks[0](x) + bias[:, :, None]
    torch.testing.assert_close(block(x, film), block.blocks[1](hidden) + x)


@pytest.mark.parametrize("batch", [1, 6])
def test_a_prepared_prediction_is_the_forward_pass(batch):
    """The features encoded once, the steps once, and their sum: what each forward pass encodes together."""
    torch.manual_seed(0)
    unet = ConditionalUnet1d(2, 5, step_embed_dim=8, down_dims=(8, 16, 24), groups=4)
    steps, features = torch.tensor([99, 40, 0]), torch.randn(batch, 5)
    predict = unet.predictor(steps, features)
    for i, step in enumerate(steps):
        x = torch.randn(batch, 8, 2)
        torch.testing.assert_close(predict(i, x), unet(x, step.expand(batch), features), rtol=1e-4, atol=1e-5)


def test_a_prepared_prediction_depends_on_step_and_condition():
    torch.manual_seed(0)
    unet = ConditionalUnet1d(2, 5, step_embed_dim=8, down_dims=(8, 16), groups=4)
    x, features = torch.randn(2, 8, 2), torch.randn(2, 5)
    predict, other = (unet.predictor(torch.tensor([80, 3]), item) for item in (features, -features))
    assert not torch.allclose(predict(0, x), predict(1, x)) and not torch.allclose(predict(0, x), other(0, x))


def test_resampling_halves_and_doubles():
    x = torch.randn(2, 4, 8)
    assert downsample(4)(x).shape == (2, 4, 4)
    assert upsample(4)(x).shape == (2, 4, 16)


def test_sinusoids_by_hand():
    got = SinusoidalEmbedding(4)(torch.tensor([0, 2]))
    expected = torch.tensor([[0.0, 0.0, 1.0, 1.0], [2.0, 2e-4, 2.0, 2e-4]])
    expected[1] = torch.stack([*expected[1, :2].sin(), *expected[1, 2:].cos()])
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"down_dims": (12, 24)}, "down_dims"),
        ({"down_dims": ()}, "down_dims"),
        ({"step_embed_dim": 7}, "step_embed_dim=7"),
        ({"kernel_size": 4}, "kernel_size=4"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ConditionalUnet1d(2, 4, **options)


def test_a_horizon_that_does_not_divide_is_refused():
    unet = ConditionalUnet1d(2, 4, step_embed_dim=8, down_dims=(8, 16, 32))
    with pytest.raises(ValueError, match="horizon=10"):
        unet(torch.randn(1, 10, 2), torch.zeros(1), torch.randn(1, 4))
