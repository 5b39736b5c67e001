"""Small runs for reports: known scores, settings, origin, and a checkpoint that can act."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from immiscible_policy.evaluation.agent import spec_metadata
from immiscible_policy.evaluation.rollout import evaluate
from immiscible_policy.policy.build import build_policy
from immiscible_policy.results.report import rollouts
from immiscible_policy.store.checkpoint import save_checkpoint
from tests.results.runs import Score, write_run
from tests.small_policy import SPEC


def noisy(shift: float, rng_seed: int) -> Score:
    """Scores about 0.5 + shift."""
    rng = np.random.default_rng(rng_seed)
    return lambda seed, step, start: 0.5 + shift + 0.05 * rng.standard_normal()


def write_whole_run(directory: Path, score: Score, noise: str, seeds=(0, 1, 2), **settings) -> Path:
    """A run with the settings and the origin that training records."""
    write_run(directory, score, seeds)
    config = {"task": {"name": "pusht"}, "noise": {"name": noise}, "obs": "keypoints", "seed": "0..2", "steps": 1500}
    config |= {"eval_every": 500, "starts": "100..105", "episodes": 6, "sampling_steps": 1, "out": str(directory)}
    config |= settings
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    data = {"path": "/somewhere/demos.zarr", "content_hash": "c0ffee" * 8, "episodes": 7}
    origin = {"command": f"python train_policy.py noise={noise} out={directory}", "commit": "abc1234", "data": data}
    (directory / "provenance.json").write_text(json.dumps(origin))
    return directory


def keep_checkpoint(run: Path, seed: int, step: int) -> None:
    """Put an untrained policy where the run keeps its checkpoints."""
    torch.manual_seed(seed)
    weights = build_policy(SPEC).state_dict()
    metadata = spec_metadata(SPEC) | {"step": step, "seed": seed}
    save_checkpoint(run / f"seed_{seed}/checkpoints/step_{step:06d}", metadata, {"model": weights, "ema": weights})


def shorten(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """End the report's rollouts after a few steps."""
    monkeypatch.setattr(rollouts, "evaluate", partial(evaluate, max_steps=steps, batch_size=3))
