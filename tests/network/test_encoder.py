"""Encoders and crops: facts and hand algebra, and torchvision's ResNet-18 where its wheel loads."""

import pytest
import torch

from immiscible_policy.network.crop import center_crop, random_crop
from immiscible_policy.network.encoder import (
    EncoderSpec,
    ImageEncoder,
    ResNet18,
    norm,
    spatial_softmax,
    to_channels_first,
)


def marked_frames(count=5, height=12, width=10):
    """Frames whose every pixel names its frame, row and column."""
    axes = torch.meshgrid(torch.arange(count), torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack(axes, dim=-1).to(torch.uint8)


def test_a_random_crop_is_a_square_of_its_frame():
    frames, step = marked_frames(), torch.randint(5, (40, 2))
    crop = random_crop(frames, step, 7, torch.Generator().manual_seed(0))
    assert crop.shape == (40, 2, 7, 7, 3) and crop.dtype == torch.uint8
    top, left = crop[..., 0, 0, 1].long(), crop[..., 0, 0, 2].long()
    for sample in range(40):
        for seen in range(2):
            y, x = top[sample, seen], left[sample, seen]
            assert torch.equal(crop[sample, seen], frames[step[sample, seen], y : y + 7, x : x + 7])


def test_crops_reach_every_place_equally_often_and_the_middle_is_their_mean():
    step = torch.zeros(6000, dtype=torch.int64)
    corners = random_crop(marked_frames(), step, 7, torch.Generator().manual_seed(0))[:, 0, 0, 1:].long()
    for room, places in zip((5, 3), corners.T, strict=True):
        counts = torch.bincount(places, minlength=room + 1).double()
        expected = 6000 / (room + 1)
        assert len(counts) == room + 1 and float(((counts - expected) ** 2 / expected).sum()) < 3 * room + 10
    middle = center_crop(marked_frames(), 6)[0, 0, 0, 1:]
    assert middle.tolist() == [3, 2]


def test_frames_of_a_window_have_places_of_their_own():
    corners = random_crop(marked_frames(), torch.zeros(200, 2, dtype=torch.int64), 7, torch.Generator().manual_seed(0))
    corners = corners[:, :, 0, 0, 1]
    assert not torch.equal(corners[:, 0], corners[:, 1])


def test_a_crop_is_a_function_of_its_generator():
    frames, step = marked_frames(), torch.arange(5)
    crops = [random_crop(frames, step, 7, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(crops[0], crops[1]) and not torch.equal(crops[0], crops[2])


def test_the_middle_of_the_middle_is_itself():
    frames = marked_frames(height=12, width=12)
    assert torch.equal(center_crop(center_crop(frames, 8), 8), frames[:, 2:10, 2:10])
    assert torch.equal(center_crop(frames, 12), frames)


def test_bytes_become_numbers_from_minus_one_to_one_channels_first():
    image = torch.tensor([0, 51, 255], dtype=torch.uint8).expand(4, 5, 3)
    pixels = to_channels_first(image)
    assert pixels.shape == (3, 4, 5) and torch.allclose(pixels[:, 0, 0], torch.tensor([-1.0, -0.6, 1.0]))


def test_spatial_softmax_by_hand():
    """Even maps lie in the middle, a spike where it stands; two equal ones halfway between; x first, y downwards."""
    maps = torch.zeros(1, 4, 3, 5)
    maps[0, 1, 0, 4] = maps[0, 2, 2, 0] = maps[0, 3, 2, 0] = maps[0, 3, 2, 4] = 100.0
    expected = torch.tensor([[0.0, 0.0], [1.0, -1.0], [-1.0, 1.0], [0.0, 1.0]])
    torch.testing.assert_close(spatial_softmax(maps)[0], expected, atol=1e-6, rtol=0)


def test_spatial_softmax_is_the_mean_under_the_softmax():
    maps = torch.randn(2, 3, 4, 6)
    density = torch.softmax(maps.reshape(2, 3, 24), -1).reshape(2, 3, 4, 6)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 4), torch.linspace(-1, 1, 6), indexing="ij")
    expected = torch.stack([(density * x).sum((2, 3)), (density * y).sum((2, 3))], dim=-1)
    torch.testing.assert_close(spatial_softmax(maps), expected)


def test_the_published_size():
    """11,176,512 of ResNet-18 without its classifier, 512 * 32 + 32 of the maps, 64 * 64 + 64 of the linear layer."""
    with torch.device("meta"):
        encoder = ImageEncoder(EncoderSpec())
    sizes = [sum(p.numel() for p in part.parameters()) for part in (encoder.obs_nets["img"].backbone, encoder)]
    assert sizes == [11_176_512, 11_176_512 + 16_416 + 4_160]


def test_the_resnet_is_torchvisions():
    """Weights go over by name, and give the same numbers; skipped where torchvision is missing or does not load."""
    torchvision = pytest.importorskip("torchvision", exc_type=(ImportError, RuntimeError))
    theirs = torchvision.models.resnet18(weights=None, norm_layer=norm).eval()
    ours = ResNet18().eval()
    known = {name: value for name, value in theirs.state_dict().items() if not name.startswith("fc.")}
    ours.load_state_dict(known)
    pixels = torch.randn(2, 3, 84, 84)
    stages = torch.nn.Sequential(*list(theirs.children())[:-2])
    torch.testing.assert_close(ours(pixels), stages(pixels))


def test_convolutions_begin_as_torchvision_lets_them():
    torch.manual_seed(0)
    weight = ResNet18().get_parameter("layer2.0.conv1.weight").detach()  # normal, variance 2 / fan out
    assert float(weight.std()) == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)


@pytest.mark.parametrize("shared", [False, True])
def test_any_number_of_cameras(shared):
    spec = EncoderSpec(("img", "wrist", "side"), crop=40, width=16, shared=shared)
    encoder = ImageEncoder(spec).eval()
    agent, images = torch.randn(3, 2, 4), torch.randint(256, (3, 2, 3, 48, 48, 3), dtype=torch.uint8)
    features = encoder(agent, images)
    assert features.shape == (3, 2 * spec.features(4)) == (3, 2 * (3 * 64 + 4))
    assert len(encoder.obs_nets) == (1 if shared else 3)
    by_step = features.unflatten(1, (2, 196))
    assert torch.equal(by_step[..., 192:], agent)
    for place, camera in enumerate(spec.cameras):
        network = encoder.obs_nets["shared" if shared else camera]
        alone = network(to_channels_first(center_crop(images[:, 1, place], 40)))
        torch.testing.assert_close(by_step[:, 1, 64 * place : 64 * place + 64], alone)


def test_a_frame_is_encoded_alone():
    """Group normalisation knows no batch: neither neighbours nor training change what a frame gives."""
    encoder = ImageEncoder(EncoderSpec(crop=40, width=16))
    agent, images = torch.zeros(4, 2, 2), torch.randint(256, (4, 2, 1, 40, 40, 3), dtype=torch.uint8)
    whole = encoder(agent, images)
    torch.testing.assert_close(encoder.eval()(agent[1:2], images[1:2]), whole[1:2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EncoderSpec(cameras=()), r"cameras=\[\]"),
        (lambda: EncoderSpec(cameras=("a", "a")), "all different"),
        (lambda: EncoderSpec(crop=0), "crop=0"),
        (lambda: EncoderSpec(width=24), "encoder_width=24: needs a multiple of 16"),
    ],
)
def test_unusable_sizes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
