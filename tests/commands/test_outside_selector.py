"""A selector in a package of its own trains, in grids too, and resumes with its own options only."""

import json

import pytest
import yaml

from tests.training.helpers import here, refused, seeds_in_turn, write_small_store

OWN = '''
import torch

class Warm:
    """Noise of another length.

    Attributes:
        temperature: Factor on the noise.
    """

    def __init__(self, temperature=0.5):
        self.temperature = temperature

    def __call__(self, x, *, condition=None, mask=None, step=None, generator=None):
        return self.temperature * torch.randn(x.shape, generator=generator)
'''
TINY = ("experiment=debug", "device=cpu", "steps=4", "checkpoint_every=4", "episodes=1", "noise=outside_noise:Warm")


@pytest.fixture
def store(tmp_path, monkeypatch):
    package = tmp_path / "installed"
    package.mkdir()
    (package / "outside_noise.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(package))
    return write_small_store(tmp_path / "small.zarr")


def squared_norm(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return next(row["noise/squared_norm"] for row in rows if "noise/squared_norm" in row)


def test_two_seeds_train_and_resume_as_they_began(store, tmp_path):
    """In processes of their own: tests/outside."""
    out = tmp_path / "run"
    words = (*TINY, f"data={store}", f"out={out}", "seed=0,1", "noise.temperature=2")
    with seeds_in_turn():
        result = here("train_policy.py", *words)
    assert result.returncode == 0, result.stderr
    recorded = yaml.safe_load((out / "config.yaml").read_text())["noise"]
    assert recorded == {"name": "outside_noise:Warm", "temperature": 2}
    assert all(squared_norm(out / f"seed_{seed}") == pytest.approx(4 * 32, rel=0.1) for seed in (0, 1))
    assert "finished already" in here("train_policy.py", *words, "resume=true").stdout
    message = refused(here("train_policy.py", *words[:-1], "noise.temperature=3", "resume=true"))
    assert "temperature" in message and "differs" in message


def test_its_options_make_a_grid(store, tmp_path):
    out = tmp_path / "grid"
    result = here("train_policy.py", *TINY, f"data={store}", f"out={out}", "noise.temperature=1,2")
    assert result.returncode == 0, result.stderr
    norms = [squared_norm(out / arm / "seed_0") for arm in ("noise.temperature1", "noise.temperature2")]
    assert norms[1] == pytest.approx(4 * norms[0], rel=0.1)


def test_what_is_wrong_with_it_is_said_before_anything_is_created(store, tmp_path):
    for word, why in (("noise.heat=1", "heat=1: noise=outside_noise:Warm has no heat; it takes temperature"),
                      ("noise.temperature=", "noise.temperature= is empty")):  # fmt: skip
        assert why in refused(here("train_policy.py", *TINY, f"data={store}", f"out={tmp_path / 'no'}", word))
    assert not (tmp_path / "no").exists()
