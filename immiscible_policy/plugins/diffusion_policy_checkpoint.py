"""Diffusion Policy's `.ckpt` of its U-Net policies, low-dimensional and hybrid image: read, and written for workspaces.

A workspace saves `{"cfg": ..., "state_dicts": {"model", "ema_model", "optimizer"}, "pickles": {name: bytes}}`. Names:

    here                                 there
    network.NAME                         model.NAME                                the same U-Net, the same names within
    observer.normalizer.scale, offset    normalizer.params_dict.obs.scale, offset  beside pictures agent_pos, not obs
    action.scale, offset                 normalizer.params_dict.action.scale, offset, times data_scale
    data_scale                           noise_scheduler.clip_sample_range
    within observer.encoder.obs_nets.img   within obs_encoder.obs_nets.CAMERA: robomimic's ResNet-18 and spatial softmax
      backbone.conv1, bn1, layer1..4         backbone.nets.0, 1, 4..7     (the others have no weights)
      keypoints                              pool.nets                    (and the constants of its pixels)
      linear                                 nets.3

`data_scale` stretches the normalised actions and the range that they are clipped to; there, that is a wider normaliser
and a wider clipping range. `nets` holds the modules `backbone` and `pool` once more, as nets.0 and nets.1, with their
weights. A camera's features and the agent's position come in the order of `shape_meta.obs`; here the position is last.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from immiscible_policy.network.encoder import EncoderSpec
from immiscible_policy.plugins import published
from immiscible_policy.plugins.inert_pickle import plain, read_bytes, read_pickled
from immiscible_policy.plugins.published import ACTION, AGENT_DIM, CAMERA_ENCODER, LAYOUT, NETWORK, OBSERVATION, TASK
from immiscible_policy.policy.build import PolicySpec
from immiscible_policy.store.checkpoint import Checkpoint, CheckpointError

LOWDIM, HYBRID = "DiffusionUnetLowdimPolicy", "DiffusionUnetHybridImagePolicy"
MODULES = {LOWDIM: "diffusion_unet_lowdim_policy", HYBRID: "diffusion_unet_hybrid_image_policy"}
NORMALIZER = "normalizer.params_dict."
LOWDIM_SETTINGS = {"obs_as_local_cond": False, "obs_as_global_cond": True, "pred_action_steps_only": False,
                 "oa_step_convention": True}  # fmt: skip
HYBRID_SETTINGS = {"obs_as_global_cond": True, "obs_encoder_group_norm": True, "eval_fixed_crop": True}
NETWORK_SETTINGS = {"n_groups": published.FINAL_GROUPS, "cond_predict_scale": True}
ENCODER = published.encoder_names("backbone.nets.", "nets.3.")
HERE = {there: here for here, there in ENCODER.items()}
WRITTEN_CAMERA, WRITTEN_AGENT = "image", "agent_pos"  # in that order in what is written


class HybridObservation(NamedTuple):
    """What a hybrid policy observes: a camera and the agent's position, by name, and what encodes the picture."""

    camera: str
    agent: str
    agent_first: bool  # whether the position comes before the picture's features
    encoder: EncoderSpec


@published.converting
def read_diffusion_policy(path: Path) -> published.ForeignCheckpoint:
    """Open a `.ckpt`, executing nothing of it: its EMA weights, or the trained ones if it has no other.

    Raises CheckpointError if the file is damaged or malicious, or the policy is of another architecture.
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
        raise CheckpointError(f"{path} is not a workspace of Diffusion Policy (cfg.policy and state_dicts)") from None
    if kind not in MODULES:
        raise CheckpointError(f"{path}: {target} is another architecture; only {LOWDIM} and {HYBRID} convert")
    published.require(path, network, NETWORK_SETTINGS)
    published.require(path, noising, published.NOISING)
    published.require(path, policy, HYBRID_SETTINGS if kind == HYBRID else LOWDIM_SETTINGS)
    try:
        if kind == HYBRID:
            seen = read_observation(path, policy)
            obs, numbers, actions = "image", AGENT_DIM, policy["shape_meta"]["action"]["shape"][0]
        else:
            seen, numbers = None, policy["obs_dim"]
            obs, actions = published.observed(path, numbers), policy["action_dim"]
        settings = {"clip_sample_range": 1.0, **policy, **noising, **network}
        sizes = {"obs_dim": numbers, "action_dim": published.whole(actions), "encoder": seen and seen.encoder}
        spec = published.policy_spec(path, settings, obs=obs, **sizes)
    except (LookupError, TypeError, AttributeError) as error:
        raise published.lacks(path, error) from None
    pickled = (content.get("pickles") or {}).get("global_step")
    step = read_bytes(pickled) if isinstance(pickled, bytes) else 0
    weights = _weights(path, state, spec, seen)
    return published.foreign(path, "Diffusion Policy", spec, weights, step if isinstance(step, int) else 0)


def read_observation(path: Path, policy: Mapping[str, Any]) -> HybridObservation:
    """What a hybrid policy observes; a CheckpointError if not one camera, a square in the middle, and two numbers."""
    observations = policy["shape_meta"]["obs"]
    shapes = {name: list(entry["shape"]) for name, entry in observations.items()}
    seen = [name for name, entry in observations.items() if entry.get("type") == "rgb"]
    agent = [name for name in shapes if name not in seen]
    if len(seen) != 1 or [shapes[name] for name in agent] != [[AGENT_DIM]]:
        names = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise CheckpointError(
            f"{path}: observes {names}; {TASK.title} has one camera and the agent's position [{AGENT_DIM}]"
        )
    encoder = published.encoder_spec(path, shapes[seen[0]][1:], policy["crop_shape"])
    return HybridObservation(seen[0], agent[0], list(shapes)[0] == agent[0], encoder)


def _weights(
    path: Path, state: Mapping[str, Tensor], spec: PolicySpec, seen: HybridObservation | None
) -> dict[str, Tensor]:
    observation, action = (_affine(path, state, field) for field in (seen.agent if seen else "obs", "action"))
    unet, encoder = published.within("model.", state), {}
    if seen:
        published.check_pixels(path, *_affine(path, state, seen.camera))
        theirs = published.within(f"obs_encoder.obs_nets.{seen.camera}.", state)
        once = {name: value for name, value in theirs.items() if name.startswith(tuple(ENCODER.values()))}
        encoder = published.under(CAMERA_ENCODER, published.renamed(once, HERE))
        unet = published.reordered(unet, published.agent_first(spec).argsort(), spec) if seen.agent_first else unet
    return published.under(NETWORK, unet) | encoder | published.normalizers(observation, action, spec)


def _affine(path: Path, state: Mapping[str, Tensor], field: str) -> tuple[Tensor, Tensor]:
    """Scale and offset of a field; a CheckpointError if they are missing."""
    names = [f"{NORMALIZER}{field}.{part}" for part in ("scale", "offset")]
    missing = [name for name in names if name not in state]
    if missing:
        raise CheckpointError(f"{path}: {missing[0]} is missing; the policy was saved before its normaliser was fitted")
    return state[names[0]].detach(), state[names[1]].detach()


def write_diffusion_policy(checkpoint: Checkpoint, spec: PolicySpec, out: Path) -> None:
    """Write a `.ckpt` for a workspace of the same sizes: `workspace.load_checkpoint(path, exclude_keys=["optimizer"])`.

    It holds weights, normalisers and the policy's part of the configuration; not the workspace's other settings. A
    CheckpointError if the policy has no counterpart there.
    """
    published.exportable(checkpoint, spec)
    states = {
        there: _state(checkpoint.tensors(here), spec) for there, here in (("model", "model"), ("ema_model", "ema"))
    }
    torch.save({"cfg": {"policy": _config(spec)}, "state_dicts": states, "pickles": {}}, out)


def _state(weights: Mapping[str, Tensor], spec: PolicySpec) -> dict[str, Tensor]:
    """A policy's tensors under their names there, with the empty ones that its modules hold."""
    empty = torch.empty(0)
    fields = {
        WRITTEN_AGENT if spec.encoder else "obs": (weights[f"{OBSERVATION}scale"], weights[f"{OBSERVATION}offset"]),
        "action": (spec.data_scale * weights[f"{ACTION}scale"], spec.data_scale * weights[f"{ACTION}offset"]),
    }
    state = {"_dummy_variable": empty, "mask_generator._dummy_variable": empty}
    if spec.encoder:
        fields[WRITTEN_CAMERA] = torch.tensor([2.0]), torch.tensor([-1.0])
        x, y = published.places(spec.encoder)
        constants = {"pool.temperature": torch.ones(1), "pool.pos_x": x[None], "pool.pos_y": y[None]}
        core = published.renamed(published.within(CAMERA_ENCODER, weights), ENCODER) | constants
        again = {"backbone.": "nets.0.", "pool.": "nets.1."}
        twice = published.renamed({name: core[name] for name in core if name.startswith(tuple(again))}, again)
        state |= published.under(f"obs_encoder.obs_nets.{WRITTEN_CAMERA}.", core | twice)
    for field, (scale, offset) in fields.items():
        low, high = (-1 - offset) / scale, (1 - offset) / scale
        values = {"scale": scale, "offset": offset, "input_stats.min": low, "input_stats.max": high}
        state |= published.under(f"{NORMALIZER}{field}.", values)
    return state | published.under("model.", published.within(NETWORK, weights))


def _config(spec: PolicySpec) -> dict[str, Any]:
    """The policy's part of a workspace's configuration."""
    kind = HYBRID if spec.encoder else LOWDIM
    noising = {"num_train_timesteps": spec.diffusion_steps, "clip_sample_range": spec.data_scale}
    network = NETWORK_SETTINGS | {
        "diffusion_step_embed_dim": spec.step_embed_dim,
        "down_dims": list(spec.down_dims),
        "kernel_size": spec.kernel_size,
    }
    config = {
        "_target_": f"diffusion_policy.policy.{MODULES[kind]}.{kind}",
        "noise_scheduler": noising | published.NOISING | {"prediction_type": spec.prediction},
        "horizon": spec.horizon,
        "n_obs_steps": spec.obs_steps,
        "n_action_steps": spec.action_steps,
        "num_inference_steps": spec.diffusion_steps,
    }
    if spec.encoder is None:
        ends = {"input_dim": spec.action_dim, "global_cond_dim": spec.obs_dim * spec.obs_steps}
        sizes = {"obs_dim": spec.obs_dim, "action_dim": spec.action_dim}
        return config | LOWDIM_SETTINGS | sizes | {"model": ends | network}
    fields = {
        WRITTEN_CAMERA: {"shape": [3, LAYOUT.side, LAYOUT.side], "type": "rgb"},
        WRITTEN_AGENT: {"shape": [AGENT_DIM], "type": "low_dim"},
    }
    crop = None if spec.encoder.crop == LAYOUT.side else [spec.encoder.crop, spec.encoder.crop]
    shapes = {"obs": fields, "action": {"shape": [spec.action_dim]}}
    return config | HYBRID_SETTINGS | network | {"crop_shape": crop, "shape_meta": shapes}
