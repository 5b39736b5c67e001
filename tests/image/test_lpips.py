"""LPIPS: the formula by hand on small random weights, and files that are refused."""

import pickle

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional

from immiscible_policy.image.lpips import Lpips, load_lpips

VGG16 = (0, 2, "M", 5, 7, "M", 10, 12, 14, "M", 17, 19, 21, "M", 24, 26, 28)
"""Places of the convolutions; M: maximum over 2x2."""
WIDTHS = (2, 3, 4, 3, 2)


def tiny_weights() -> dict[str, torch.Tensor]:
    """Random weights by the names of lpips.LPIPS(net="vgg").state_dict(), a few channels wide."""
    generator, weights, depth, before = torch.Generator().manual_seed(0), {}, 0, 3
    for place in VGG16:
        if place == "M":
            depth += 1
            continue
        layer, width = f"net.slice{depth + 1}.{place}", WIDTHS[depth]
        weights[f"{layer}.weight"] = 0.5 * torch.randn(width, before, 3, 3, generator=generator)
        weights[f"{layer}.bias"] = torch.randn(width, generator=generator)
        before = width
    for depth, width in enumerate(WIDTHS):
        weights[f"lin{depth}.model.1.weight"] = torch.rand(1, width, 1, 1, generator=generator)
    weights["scaling_layer.shift"] = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    weights["scaling_layer.scale"] = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    return weights


def images(seed: int, side: int = 32) -> torch.Tensor:
    return torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def by_hand(x, y, weights):
    """Sum over depths of the mean over pixels of sum_c w_c (x_c / |x| - y_c / |y|)^2, in float64."""
    weights = {name: tensor.double() for name, tensor in weights.items()}

    def features(x):
        x = functional.interpolate(x.double(), size=(224, 224), mode="bilinear", align_corners=False)
        x = (x - weights["scaling_layer.shift"]) / weights["scaling_layer.scale"]
        found = []
        for place in VGG16:
            if place == "M":
                found.append(x)
                x = nn.MaxPool2d(2, 2)(x)
                continue
            layer = f"net.slice{len(found) + 1}.{place}"
            x = functional.conv2d(x, weights[f"{layer}.weight"], weights[f"{layer}.bias"], padding=1).clamp(min=0)
        return [each / (each.norm(dim=1, keepdim=True) + 1e-10) for each in (*found, x)]

    total = 0
    for depth, (a, b) in enumerate(zip(features(x), features(y), strict=True)):
        total = total + (weights[f"lin{depth}.model.1.weight"] * (a - b) ** 2).sum(1).mean(dim=(1, 2))
    return total


def test_lpips_by_hand():
    x, y = images(1), images(2)
    distance = Lpips(tiny_weights())(x, y)
    assert distance.shape == (3,) and float(distance.min()) > 0.01
    torch.testing.assert_close(distance.double(), by_hand(x, y, tiny_weights()), rtol=1e-3, atol=1e-6)
    assert torch.equal(Lpips(tiny_weights())(x, x), torch.zeros(3))


def test_large_images_keep_their_size():
    """An image of 448 pixels, each of 224 four times: half the size would lose nothing, and give another value."""
    lpips, x, y = Lpips(tiny_weights()), images(1, 224)[:1], images(2, 224)[:1]
    larger = [functional.interpolate(each, scale_factor=2) for each in (x, y)]
    torch.testing.assert_close(lpips(x, y).double(), by_hand(x, y, tiny_weights()), rtol=1e-3, atol=1e-6)
    assert abs(float(lpips(*larger) / lpips(x, y)) - 1) > 0.01


def test_the_weights_neither_train_nor_are_saved():
    lpips = Lpips(tiny_weights())
    assert not list(lpips.parameters()) and not lpips.state_dict()


@pytest.mark.parametrize("name", ["lpips.safetensors", "lpips.pt"])
def test_weights_come_from_a_file(name, tmp_path):
    save = safetensors.torch.save_file if name.endswith("safetensors") else torch.save
    save(tiny_weights(), tmp_path / name)
    x, y = images(1), images(2)
    assert torch.equal(load_lpips(tmp_path / name)(x, y), Lpips(tiny_weights())(x, y))


class Trap:
    """Leaves a mark when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_that_would_run_code_is_refused_unexecuted(tmp_path):
    torch.save({"weights": Trap(tmp_path / "ran")}, tmp_path / "lpips.pt")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    for name in ("lpips.pt", "plain.pkl"):
        with pytest.raises(ValueError, match="no file of plain tensors") as refused:
            load_lpips(tmp_path / name)
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "ran").exists()


def test_unusable_files_are_refused_in_one_line(tmp_path):
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    (tmp_path / "torn.pt").write_bytes(b"torn")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save({name: value for name, value in tiny_weights().items() if "slice" not in name}, tmp_path / "lin.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for name, message in {
        "absent.pt": "is missing",
        "torn.safetensors": "no file of plain tensors",
        "torn.pt": "no file of plain tensors",
        "empty.pt": "no file of plain tensors",
        "lin.pt": "lacks net.slice1.0.weight",
        "list.pt": "lacks",
    }.items():
        with pytest.raises(ValueError, match=message) as refused:
            load_lpips(tmp_path / name)
        assert "\n" not in str(refused.value)
