"""Extractors: images come to the classifier's size by averaging; Inception's weights are looked at before use."""

import pickle
import sys
import types

import pytest
import torch
from torch.nn.functional import avg_pool2d

from immiscible_policy.image.data import to_pixels
from immiscible_policy.image.evaluation.classifier import BUNDLED, load_classifier
from immiscible_policy.image.evaluation.features import INCEPTION_URL, features_of, make_extractor


def images(count: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def test_larger_images_are_averaged_and_others_taken_as_they_are():
    extractor, network = make_extractor("classifier"), load_classifier(BUNDLED)[0]
    with torch.no_grad():
        torch.testing.assert_close(extractor.features(images(4, 16)), network.features(to_pixels(images(4, 16))))
        averaged = avg_pool2d(to_pixels(images(4, 32)), 2)
        torch.testing.assert_close(extractor.features(images(4, 32)), network.features(averaged), rtol=1e-4, atol=1e-5)
    assert extractor.title == "classifier Fréchet distance (CIFAR-10 ResNet, 96 dims)"
    assert (extractor.dims, extractor.resize) == (96, "area average to 16x16")


def test_features_do_not_depend_on_batches():
    extractor, whole = make_extractor("classifier"), images(7, 16)
    torch.testing.assert_close(features_of(extractor, whole.split(3)), features_of(extractor, [whole]))


def test_unknown_extractors_are_refused():
    with pytest.raises(ValueError, match="unknown features 'inceptoin'; did you mean 'inception'"):
        make_extractor("inceptoin")


def test_without_torch_fidelity_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(ValueError, match="pip install torch-fidelity torchvision, or use features=classifier") as error:
        make_extractor("inception")
    assert "\n" not in str(error.value)


class Network(torch.nn.Module):
    """In the place of torch-fidelity's network: loads as it does, and counts pixels."""

    def __init__(self, name, features, path):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.zeros(1))
        self.load_state_dict(torch.load(path, weights_only=False))

    def forward(self, x):
        return (x.float().mean(dim=(1, 2, 3), keepdim=True)[:, :, 0, 0] * self.scale,)


@pytest.fixture
def fidelity(monkeypatch):
    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = Network
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", module)


def test_inception_is_only_called_fid_with_the_published_weights(fidelity, tmp_path):
    torch.save({"scale": torch.tensor([2.0])}, tmp_path / "weights.pth")
    extractor = make_extractor("inception", inception=tmp_path / "weights.pth")
    assert extractor.title == "Fréchet distance (Inception, other weights)"
    assert float(extractor.features(torch.full((1, 3, 8, 8), 3, dtype=torch.uint8))) == 6


def test_missing_weights_are_named_with_where_to_get_them(fidelity, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match=INCEPTION_URL.replace(".", r"\.")):
        make_extractor("inception")


def test_weights_of_another_network_are_refused(fidelity, tmp_path):
    torch.save({"other": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="has no weights of torch-fidelity's InceptionV3"):
        make_extractor("inception", inception=tmp_path / "weights.pth")


class Trap:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("save", [torch.save, lambda what, path: path.write_bytes(pickle.dumps(what))])
def test_weights_that_would_execute_something_are_refused_unread(fidelity, tmp_path, capsys, save):
    save({"scale": Trap()}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="is not a file of weights"):
        make_extractor("inception", inception=tmp_path / "weights.pth")
    assert "executed" not in capsys.readouterr().out
