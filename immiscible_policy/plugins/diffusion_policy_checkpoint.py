"""Diffusion Policy's `.ckpt` of its U-Net policies, low-dimensional and hybrid image: read, and written for workspaces.

A workspace saves `{"cfg": ..., "state_dicts": {"model", "ema_model", "optimizer"}, "pickles": {name: bytes}}`. Names:

    here                        there
    network.NAME                model.NAME                                 the same U-Net, the same names within
    encoder.NAME                obs_encoder.NAME                           see `diffusion_policy_encoder`
    observation.scale, offset   normalizer.params_dict.obs.scale, offset   beside pictures agent_pos instead of obs
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

from immiscible_policy.network.encoder import EncoderSpec
from immiscible_policy.plugins.diffusion_policy_encoder import (
    WRITTEN,
    Observed,
    encoder_config,
    read_encoder,
    read_observed,
    write_encoder,
)
from immiscible_policy.plugins.inert_pickle import plain, read_bytes, read_pickled
from immiscible_policy.plugins.published import (
    AGENT_DIM,
    FINAL_GROUPS,
    ForeignCheckpoint,
    agent_first,
    check_pixels,
    exportable,
    foreign,
    lacks,
    observed,
    reordered,
    require,
    under,
    whole,
    within,
)
from immiscible_policy.policy.build import PolicySpec
from immiscible_policy.store.checkpoint import Checkpoint, CheckpointError
from immiscible_policy.tasks.pusht import SIZE

LOWDIM, HYBRID = "DiffusionUnetLowdimPolicy", "DiffusionUnetHybridImagePolicy"
MODULES = {LOWDIM: "diffusion_unet_lowdim_policy", HYBRID: "diffusion_unet_hybrid_image_policy"}
NORMALIZER = "normalizer.params_dict."
SETTINGS = {"obs_as_local_cond": False, "obs_as_global_cond": True, "pred_action_steps_only": False,
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
        target, noising = policy["_target_"], policy["noise_scheduler"]
        kind = target.rpartition(".")[2]
        network = policy["model"] if kind == LOWDIM else policy
    except (KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{path} is no workspace of Diffusion Policy (cfg.policy and state_dicts)") from None
    if kind not in MODULES:
        raise CheckpointError(f"{path}: {target} is another architecture; only {LOWDIM} and {HYBRID} convert")
    for found, wanted in ((network, NETWORK), (noising, NOISING)):
        require(path, found, wanted)
    try:
        seen = read_observed(path, policy) if kind == HYBRID else None
        spec = _spec(policy, network, noising, _sizes(path, policy) if seen is None else _seen_sizes(policy, seen))
    except (LookupError, TypeError, AttributeError) as error:
        raise lacks(path, error) from None
    return foreign(path, "Diffusion Policy", spec, _weights(path, state, spec, seen), _step(content))


def _sizes(path: Path, policy: Mapping[str, Any]) -> dict[str, Any]:
    """What a low-dimensional policy observes and does."""
    require(path, policy, SETTINGS)
    numbers = policy["obs_dim"]
    return {"obs": observed(path, numbers), "obs_dim": numbers, "action_dim": whole(policy["action_dim"])}


def _seen_sizes(policy: Mapping[str, Any], seen: Observed) -> dict[str, Any]:
    """What a hybrid policy observes and does."""
    action_dim = whole(policy["shape_meta"]["action"]["shape"][0])
    return {"obs": "image", "obs_dim": AGENT_DIM, "action_dim": action_dim, "encoder": seen.encoder}


def _spec(
    policy: Mapping[str, Any], network: Mapping[str, Any], noising: Mapping[str, Any], sizes: Mapping[str, Any]
) -> PolicySpec:
    return PolicySpec(
        **sizes,
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


def _weights(path: Path, state: Mapping[str, Tensor], spec: PolicySpec, seen: Observed | None) -> dict[str, Tensor]:
    scale, offset = _affine(path, state, seen.agent if seen else "obs")
    action_scale, action_offset = _affine(path, state, "action")
    unet, encoder = within("model.", state), {}
    if seen:
        check_pixels(path, *_affine(path, state, seen.camera))
        encoder = read_encoder(state, seen.camera)
        unet = reordered(unet, agent_first(spec).argsort(), spec) if seen.agent_first else unet
    normalisers = {
        "observer.normalizer.scale": scale,
        "observer.normalizer.offset": offset,
        "action.scale": action_scale / spec.data_scale,
        "action.offset": action_offset / spec.data_scale,
    }
    return under("network.", unet) | encoder | normalisers


def _affine(path: Path, state: Mapping[str, Tensor], field: str) -> tuple[Tensor, Tensor]:
    """Scale and offset of a field.

    Raises:
        CheckpointError: If they are missing.
    """
    names = [f"{NORMALIZER}{field}.{part}" for part in ("scale", "offset")]
    missing = [name for name in names if name not in state]
    if missing:
        raise CheckpointError(f"{path}: {missing[0]} is missing; the policy was saved before its normaliser was fitted")
    return state[names[0]].detach(), state[names[1]].detach()


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
    camera, agent = WRITTEN
    fields = {
        agent if spec.encoder else "obs": (weights["observer.normalizer.scale"], weights["observer.normalizer.offset"]),
        "action": (spec.data_scale * weights["action.scale"], spec.data_scale * weights["action.offset"]),
    }
    state = {"_dummy_variable": empty, "mask_generator._dummy_variable": empty}
    if spec.encoder:
        fields[camera] = torch.tensor([2.0]), torch.tensor([-1.0])
        state |= write_encoder(weights, spec.encoder)
    for field, (scale, offset) in fields.items():
        low, high = (-1 - offset) / scale, (1 - offset) / scale
        values = {"scale": scale, "offset": offset, "input_stats.min": low, "input_stats.max": high}
        state |= under(f"{NORMALIZER}{field}.", values)
    return state | under("model.", within("network.", weights))


def _config(spec: PolicySpec) -> dict[str, Any]:
    """The policy's part of a workspace's configuration."""
    kind = HYBRID if spec.encoder else LOWDIM
    noising = {"num_train_timesteps": spec.diffusion_steps, "clip_sample_range": spec.data_scale}
    return {
        "_target_": f"diffusion_policy.policy.{MODULES[kind]}.{kind}",
        "noise_scheduler": noising | NOISING,
        "horizon": spec.horizon,
        "n_obs_steps": spec.obs_steps,
        "n_action_steps": spec.action_steps,
        "num_inference_steps": spec.diffusion_steps,
    } | (_hybrid_config(spec, spec.encoder) if spec.encoder else _lowdim_config(spec))


def _network_config(spec: PolicySpec) -> dict[str, Any]:
    sizes = {"diffusion_step_embed_dim": spec.step_embed_dim, "down_dims": list(spec.down_dims)}
    return NETWORK | sizes | {"kernel_size": spec.kernel_size}


def _lowdim_config(spec: PolicySpec) -> dict[str, Any]:
    """What only the low-dimensional policy's configuration has."""
    ends = {"input_dim": spec.action_dim, "global_cond_dim": spec.obs_dim * spec.obs_steps}
    sizes = {"obs_dim": spec.obs_dim, "action_dim": spec.action_dim}
    return SETTINGS | sizes | {"model": ends | _network_config(spec)}


def _hybrid_config(spec: PolicySpec, encoder: EncoderSpec) -> dict[str, Any]:
    """What only the hybrid policy's configuration has."""
    camera, agent = WRITTEN
    fields = {
        camera: {"shape": [3, SIZE, SIZE], "type": "rgb"},
        agent: {"shape": [AGENT_DIM], "type": "low_dim"},
    }
    shapes = {"obs": fields, "action": {"shape": [spec.action_dim]}}
    return encoder_config(encoder) | _network_config(spec) | {"shape_meta": shapes}
