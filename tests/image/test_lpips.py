"""LPIPS by its package: a stand-in for the package, and its absence."""

import sys
from types import ModuleType

import pytest
import torch

from immiscible_policy.image.build import build_image_model, load_lpips
from immiscible_policy.noise import make_selector
from tests.image.specs import tiny_spec


class LPIPS(torch.nn.Module):
    """Mean squared difference; what the package's class is called with is checked."""

    def __init__(self, net, verbose):
        super().__init__()
        assert net == "vgg" and not verbose
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.sides = []

    def forward(self, x, y):
        self.sides.append(x.shape[-1])
        return self.weight * (x - y).square().mean(dim=(1, 2, 3), keepdim=True)


@pytest.fixture
def package(monkeypatch):
    built = []
    module = ModuleType("lpips")
    module.LPIPS = lambda **options: built.append(LPIPS(**options)) or built[-1]
    monkeypatch.setitem(sys.modules, "lpips", module)
    return built


def images(seed: int, side: int = 32) -> torch.Tensor:
    return torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_small_images_are_enlarged_and_large_ones_keep_their_size(package):
    distance = load_lpips()
    assert distance(images(1), images(2)).shape == (3,)
    assert distance(images(1, 256), images(2, 256)).shape == (3,)
    assert package[0].sides == [224, 256]
    assert torch.equal(distance(images(1), images(1)), torch.zeros(3))


def test_a_consistency_model_compares_pixels_with_it_and_neither_trains_nor_saves_it(package):
    spec = tiny_spec("consistency", metric="lpips", data_scale=2.0)
    model = build_image_model(spec)
    plain = build_image_model(tiny_spec("consistency"))
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert not any(parameter.requires_grad for parameter in package[0].parameters())
    batch = model.noised(images(1, 8), make_selector("vanilla"), step=0, generator=torch.Generator().manual_seed(0))
    learned, target = (
        model.path.clean(model.network(), points, t) / 2
        for points, t in zip((batch.noisy, batch.target), batch.t.unbind(1), strict=True)
    )
    distance = load_lpips()(learned, target)
    torch.testing.assert_close(model.loss(batch), (distance / (batch.t[:, 0] - batch.t[:, 1])).mean())


def test_a_model_that_only_samples_needs_no_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    model = build_image_model(tiny_spec("consistency", metric="lpips"), training=False)
    assert model.path.metric is None
    with pytest.raises(ValueError, match=r"pip install 'immiscible-policy\[lpips\]', or use metric=huber") as refused:
        build_image_model(tiny_spec("consistency", metric="lpips"))
    assert "\n" not in str(refused.value)
