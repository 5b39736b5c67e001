"""Diffusion Policy's `.ckpt` of its low-dimensional U-Net policy: read here, and written for its workspaces.

A workspace saves `{"cfg": ..., "state_dicts": {"model", "ema_model", "optimizer"}, "pickles": {name: bytes}}`. Names:

    here                        there
    denoiser.NAME               model.NAME                                 the same U-Net, the same names within
    observation.scale, offset   normalizer.params_dict.obs.scale, offset
    action.scale, offset        normalizer.params_dict.action.scale, offset, times data_scale
    data_scale                  noise_scheduler.clip_sample_range

`data_scale` stretches the normalised actions and the range that they are clipped to; there, that is a wider normaliser
and a wider clipping range.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from immiscible_policy.plugins.inert_pickle import plain, read_bytes, read_pickled
from immiscible_policy.plugins.published import (
    FINAL_GROUPS,
    ForeignCheckpoint,
    exportable,
    foreign,
    lacks,
    observed,
    require,
    under,
    whole,
    within,
)
from immiscible_policy.policy.build import PolicySpec
from immiscible_policy.training.checkpoint import Checkpoint, CheckpointError

TARGET = "DiffusionUnetLowdimPolicy"
NORMALIZER = "normalizer.params_dict."
POLICY = {"obs_as_local_cond": False, "obs_as_global_cond": True, "pred_action_steps_only": False,
          "oa_step_convention": True}  # fmt: skip
NETWORK = {"n_groups": FINAL_GROUPS, "cond_predict_scale": True}
NOISING = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "epsilon", "clip_sample": True}


def read_diffusion_policy(path: Path) -> ForeignCheckpoint:
    """Open a `.ckpt`, executing nothing of it: its EMA weights, or the trained ones if it has no other.

    Raises:
        CheckpointError: If the file is damaged or malicious, or the policy is of another architecture.
    """
    content = read_pickled(path)
    try:
        config, states = plain(content["cfg"]), content["state_dicts"]
        state: Mapping[str, Tensor] = states.get("ema_model", states["model"])
        policy = config["policy"]
        network, noising = policy["model"], policy["noise_scheduler"]
        target = policy["_target_"]
    except (KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{path} is no workspace of Diffusion Policy (cfg.policy and state_dicts)") from None
    if target.rpartition(".")[2] != TARGET:
        raise CheckpointError(f"{path}: {target} is another architecture; only {TARGET} converts")
    for found, wanted in ((policy, POLICY), (network, NETWORK), (noising, NOISING)):
        require(path, found, wanted)
    try:
        spec = _spec(path, policy, network, noising)
    except (KeyError, TypeError) as error:
        raise lacks(path, error) from None
    return foreign(path, "Diffusion Policy", spec, _weights(path, state, spec), _step(content))


def _spec(path: Path, policy: Mapping[str, Any], network: Mapping[str, Any], noising: Mapping[str, Any]) -> PolicySpec:
    return PolicySpec(
        obs=observed(path, policy["obs_dim"]),
        obs_dim=policy["obs_dim"],
        action_dim=whole(policy["action_dim"]),
        horizon=whole(policy["horizon"]),
        obs_steps=whole(policy["n_obs_steps"]),
        action_steps=whole(policy["n_action_steps"]),
        diffusion_steps=whole(noising["num_train_timesteps"]),
        data_scale=float(noising.get("clip_sample_range", 1.0)),
        down_dims=tuple(whole(each) for each in network["down_dims"]),
        step_embed_dim=whole(network["diffusion_step_embed_dim"]),
        kernel_size=whole(network["kernel_size"]),
        groups=network["n_groups"],
    )


def _weights(path: Path, state: Mapping[str, Tensor], spec: PolicySpec) -> dict[str, Tensor]:
    names = [f"{NORMALIZER}{key}.{part}" for key in ("obs", "action") for part in ("scale", "offset")]
    missing = [name for name in names if name not in state]
    if missing:
        raise CheckpointError(f"{path}: {missing[0]} is missing; the policy was saved before its normaliser was fitted")
    scale, offset, action_scale, action_offset = (state[name].detach() for name in names)
    return under("denoiser.", within("model.", state)) | {
        "observation.scale": scale,
        "observation.offset": offset,
        "action.scale": action_scale / spec.data_scale,
        "action.offset": action_offset / spec.data_scale,
    }


def _step(content: Mapping[str, Any]) -> int:
    """The step that the workspace had reached, 0 if it does not say."""
    pickled = (content.get("pickles") or {}).get("global_step")
    step = read_bytes(pickled) if isinstance(pickled, bytes) else 0
    return step if isinstance(step, int) else 0


def write_diffusion_policy(checkpoint: Checkpoint, spec: PolicySpec, out: Path) -> None:
    """Write a `.ckpt` for a workspace of the same sizes: `workspace.load_checkpoint(path, exclude_keys=["optimizer"])`.

    It holds weights, normalisers and the policy's part of the configuration; not the workspace's other settings.

    Args:
        checkpoint: What to write.
        spec: Its policy.
        out: File to create.

    Raises:
        CheckpointError: If the policy has no counterpart there.
    """
    exportable(checkpoint, spec)
    state = {name: _state(checkpoint.tensors(name), spec) for name in ("model", "ema")}
    torch.save(
        {
            "cfg": {"policy": _config(spec)},
            "state_dicts": {"model": state["model"], "ema_model": state["ema"]},
            "pickles": {},
        },
        out,
    )


def _state(weights: Mapping[str, Tensor], spec: PolicySpec) -> dict[str, Tensor]:
    """A policy's tensors under their names there, with the empty ones that its modules hold."""
    empty = torch.empty(0)
    fields = {"obs": ("observation", 1.0), "action": ("action", spec.data_scale)}
    state = {"_dummy_variable": empty, "mask_generator._dummy_variable": empty}
    for there, (here, factor) in fields.items():
        scale, offset = factor * weights[f"{here}.scale"], factor * weights[f"{here}.offset"]
        low, high = (-1 - offset) / scale, (1 - offset) / scale
        values = {"scale": scale, "offset": offset, "input_stats.min": low, "input_stats.max": high}
        state |= under(f"{NORMALIZER}{there}.", values)
    return state | under("model.", within("denoiser.", weights))


def _config(spec: PolicySpec) -> dict[str, Any]:
    """The policy's part of a workspace's configuration."""
    network = {
        "input_dim": spec.action_dim,
        "global_cond_dim": spec.obs_dim * spec.obs_steps,
        "diffusion_step_embed_dim": spec.step_embed_dim,
        "down_dims": list(spec.down_dims),
        "kernel_size": spec.kernel_size,
    }
    noising = {"num_train_timesteps": spec.diffusion_steps, "clip_sample_range": spec.data_scale}
    return {
        "_target_": f"diffusion_policy.policy.diffusion_unet_lowdim_policy.{TARGET}",
        "model": network | NETWORK,
        "noise_scheduler": noising | NOISING,
        "horizon": spec.horizon,
        "obs_dim": spec.obs_dim,
        "action_dim": spec.action_dim,
        "n_obs_steps": spec.obs_steps,
        "n_action_steps": spec.action_steps,
        "num_inference_steps": spec.diffusion_steps,
    } | POLICY
