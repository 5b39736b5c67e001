"""The Fréchet distance beside torch-fidelity's own function, on the same features."""

import json
import subprocess

import numpy as np
import pytest
import torch

from immiscible_policy.image.evaluation.features import make_extractor
from tests.conftest import ROOT
from tests.image.evaluation.distances import feature_distance

PEER = """
import json, sys, numpy as np, torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
content = np.load(sys.argv[1])
found = []
for name in json.loads(sys.argv[2]):
    a, b = (fid_features_to_statistics(torch.from_numpy(content[f"{name}_{side}"])) for side in "ab")
    found.append(fid_statistics_to_metric(a, b, verbose=False)["frechet_inception_distance"])
print(json.dumps(found))
"""


def test_equal_to_torch_fidelity_on_the_same_features(tmp_path):
    """Classifier features of two sets of images, features on very different scales, and fewer images than features."""
    python = ROOT / ".venv-peers" / "bin" / "python"
    if not python.exists() or subprocess.run([python, "-c", "import torch_fidelity"], capture_output=True).returncode:
        pytest.skip("torch-fidelity is not in .venv-peers")
    rng, extractor = np.random.default_rng(0), make_extractor("classifier")
    bytes_ = [torch.from_numpy(rng.integers(low, 256, (300, 3, 16, 16), np.uint8)) for low in (0, 80)]
    scales = np.logspace(-3, 3, 30)
    sets = {
        "classifier": [extractor.features(images).double().numpy() for images in bytes_],
        "scales": [rng.normal(shift, 1, (500, 30)) * scales for shift in (0, 0.1)],
        "singular": [rng.normal(shift, 1, (40, 64)) for shift in (0, 1)],
    }
    np.savez(
        tmp_path / "sets.npz",
        **{f"{name}_{side}": s for name, both in sets.items() for side, s in zip("ab", both, strict=True)},
    )
    words = [python, "-c", PEER, tmp_path / "sets.npz", json.dumps(list(sets))]
    result = json.loads(subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path).stdout)
    assert [feature_distance(*both) for both in sets.values()] == pytest.approx(result, rel=1e-4)
    assert min(result) > 0
