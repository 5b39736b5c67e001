"""Checkpoints become policies: with what encodes their pictures, and those from before there was any."""

from dataclasses import replace

import pytest
import torch

from immiscible_policy.evaluation.agent import read_policy, solver_of, spec_metadata
from immiscible_policy.network.encoder import EncoderSpec
from immiscible_policy.policy.build import build_policy
from immiscible_policy.solver import Solver
from immiscible_policy.store.checkpoint import Checkpoint, CheckpointError, read_checkpoint, save_checkpoint
from tests.small_policy import SPEC as BLIND

SEEING = replace(BLIND, obs="image", obs_dim=2, encoder=EncoderSpec(("img", "wrist"), 40, 16, shared=True))


def written(directory, spec, policy_metadata):
    weights = build_policy(spec).state_dict()
    save_checkpoint(directory / "step_000001", {"policy": policy_metadata, "step": 1}, {"ema": weights})
    return read_checkpoint(directory / "step_000001"), weights


@pytest.mark.parametrize("spec", [BLIND, SEEING])
def test_a_checkpoint_describes_its_policy(tmp_path, spec):
    checkpoint, weights = written(tmp_path, spec, spec_metadata(spec)["policy"])
    policy, result = read_policy(checkpoint)
    assert result == spec and not policy.training
    assert all(torch.equal(tensor, weights[name]) for name, tensor in policy.state_dict().items())


def test_a_checkpoint_from_before_encoders_is_a_policy_without_one(tmp_path):
    recorded = spec_metadata(BLIND)["policy"]
    del recorded["encoder"]
    assert read_policy(written(tmp_path, BLIND, recorded)[0])[1] == BLIND


@pytest.mark.parametrize("change", [lambda policy: policy.pop("horizon"), lambda policy: policy.update(depth=3)])
def test_a_policy_of_another_kind_is_refused(tmp_path, change):
    recorded = spec_metadata(BLIND)["policy"]
    change(recorded)
    with pytest.raises(CheckpointError, match="describes no policy that this version knows"):
        read_policy(written(tmp_path, BLIND, recorded)[0])


@pytest.mark.parametrize(
    "change", [{"diffusion_steps": 10**7}, {"horizon": 0}, {"action_steps": 0}, {"obs_steps": 500}, {"down_dims": [7]}]
)
def test_sizes_that_no_policy_has_are_refused_at_once(tmp_path, change):
    recorded = spec_metadata(BLIND)["policy"] | change
    with pytest.raises(CheckpointError, match="describes no policy that can be built .*(needs|must|divide)"):
        read_policy(written(tmp_path, BLIND, recorded)[0])


@pytest.mark.parametrize(
    "config, requested, result",
    [
        ({"solver": "renoise", "sampling_steps": 5}, (), ("renoise", 5)),
        ({"solver": "renoise", "sampling_steps": 5}, ("ddpm", 100), ("ddpm", 100)),
        ({"solver": "renoise", "sampling_steps": 5}, (None, 20), ("renoise", 20)),
        ({}, (), ("ddim", 10)),  # a checkpoint that no run of ours wrote
    ],
)
def test_a_checkpoint_is_sampled_as_in_training_unless_told(tmp_path, config, requested, result):
    assert solver_of(Checkpoint(tmp_path, {"config": config}), *requested) == Solver(*result)


def test_no_denoising_steps_are_refused(tmp_path):
    with pytest.raises(ValueError, match="sampling_steps=0"):
        solver_of(Checkpoint(tmp_path, {"config": {"sampling_steps": 5}}), None, 0)
    for damaged in ({"solver": []}, {"spacing": {}}):
        with pytest.raises(ValueError, match=r"is damaged \((solver|spacing) is .*; use another checkpoint"):
            solver_of(Checkpoint(tmp_path, {"config": damaged}))
