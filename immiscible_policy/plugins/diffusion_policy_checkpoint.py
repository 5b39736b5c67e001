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
from immiscible_policy.plugins.inert_pickle import plain, read_bytes, read_pickled
from immiscible_policy.plugins.published import (
    ACTION,
    AGENT_DIM,
    CAMERA_ENCODER,
    FINAL_GROUPS,
    NETWORK,
    OBSERVATION,
    RESNET_WIDTH,
    ForeignCheckpoint,
    agent_first,
    check_pixels,
    encoder_names,
    exportable,
    foreign,
    lacks,
    observed,
    places,
    predicted,
    renamed,
    reordered,
    require,
    seen_side,
    under,
    whole,
    within,
)
from immiscible_policy.policy.build import PolicySpec
from immiscible_policy.store.checkpoint import Checkpoint, CheckpointError
from immiscible_policy.tasks.pusht import CAMERA, SIZE

LOWDIM, HYBRID = "DiffusionUnetLowdimPolicy", "DiffusionUnetHybridImagePolicy"
MODULES = {LOWDIM: "diffusion_unet_lowdim_policy", HYBRID: "diffusion_unet_hybrid_image_policy"}
NORMALIZER = "normalizer.params_dict."
LOWDIM_SETTINGS = {"obs_as_local_cond": False, "obs_as_global_cond": True, "pred_action_steps_only": False,
                 "oa_step_convention": True}  # fmt: skip
HYBRID_SETTINGS = {"obs_as_global_cond": True, "obs_encoder_group_norm": True, "eval_fixed_crop": True}
NETWORK_SETTINGS = {"n_groups": FINAL_GROUPS, "cond_predict_scale": True}
NOISING = {"beta_schedule": "squaredcos_cap_v2", "clip_sample": True}
ENCODER = encoder_names("backbone.nets.", "nets.3.")
WRITTEN_CAMERA, WRITTEN_AGENT = "image", "agent_pos"
"""The names, in that order, of what is observed in what is written."""


class Observed(NamedTuple):
    """What a hybrid policy observes: one camera and the agent's position, by their names there.

    Attributes:
        camera: The picture's name.
        agent: The position's name.
        agent_first: Whether the position comes before the picture's features.
        encoder: What encodes the picture.
    """

    camera: str
    agent: str
    agent_first: bool
    encoder: EncoderSpec


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
    require(path, network, NETWORK_SETTINGS)
    require(path, noising, NOISING)
    require(path, policy, HYBRID_SETTINGS if kind == HYBRID else LOWDIM_SETTINGS)
    try:
        if kind == HYBRID:
            seen = read_observed(path, policy)
            action_dim = whole(policy["shape_meta"]["action"]["shape"][0])
            sizes: dict[str, Any] = {"obs": "image", "obs_dim": AGENT_DIM, "action_dim": action_dim}
            sizes["encoder"] = seen.encoder
        else:
            seen, numbers = None, policy["obs_dim"]
            sizes = {"obs": observed(path, numbers), "obs_dim": numbers, "action_dim": whole(policy["action_dim"])}
        spec = PolicySpec(
            **sizes,
            horizon=whole(policy["horizon"]),
            obs_steps=whole(policy["n_obs_steps"]),
            action_steps=whole(policy["n_action_steps"]),
            diffusion_steps=whole(noising["num_train_timesteps"]),
            prediction=predicted(path, noising["prediction_type"]),
            data_scale=float(noising.get("clip_sample_range", 1.0)),
            down_dims=tuple(whole(channels) for channels in network["down_dims"]),
            step_embed_dim=whole(network["diffusion_step_embed_dim"]),
            kernel_size=whole(network["kernel_size"]),
            groups=network["n_groups"],
        )
    except (LookupError, TypeError, AttributeError) as error:
        raise lacks(path, error) from None
    pickled = (content.get("pickles") or {}).get("global_step")
    step = read_bytes(pickled) if isinstance(pickled, bytes) else 0
    weights = _weights(path, state, spec, seen)
    return foreign(path, "Diffusion Policy", spec, weights, step if isinstance(step, int) else 0)


def read_observed(path: Path, policy: Mapping[str, Any]) -> Observed:
    """What the hybrid policy of a workspace's configuration observes.

    Raises:
        CheckpointError: If it is not one camera and two numbers, or the camera sees no square in the middle.
    """
    observations = policy["shape_meta"]["obs"]
    shapes = {name: list(entry["shape"]) for name, entry in observations.items()}
    seen = [name for name, entry in observations.items() if entry.get("type") == "rgb"]
    agent = [name for name in shapes if name not in seen]
    if len(seen) != 1 or [shapes[name] for name in agent] != [[AGENT_DIM]]:
        names = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise CheckpointError(f"{path}: observes {names}; PushT has one camera and the agent's position [{AGENT_DIM}]")
    side = seen_side(path, shapes[seen[0]][1:], policy["crop_shape"])
    return Observed(seen[0], agent[0], list(shapes)[0] == agent[0], EncoderSpec((CAMERA,), side, RESNET_WIDTH))


def _weights(path: Path, state: Mapping[str, Tensor], spec: PolicySpec, seen: Observed | None) -> dict[str, Tensor]:
    scale, offset = _affine(path, state, seen.agent if seen else "obs")
    action_scale, action_offset = _affine(path, state, "action")
    unet, encoder = within("model.", state), {}
    if seen:
        check_pixels(path, *_affine(path, state, seen.camera))
        theirs = within(f"obs_encoder.obs_nets.{seen.camera}.", state)
        once = {name: value for name, value in theirs.items() if name.startswith(tuple(ENCODER.values()))}
        encoder = under(CAMERA_ENCODER, renamed(once, {there: here for here, there in ENCODER.items()}))
        unet = reordered(unet, agent_first(spec).argsort(), spec) if seen.agent_first else unet
    action = {"scale": action_scale / spec.data_scale, "offset": action_offset / spec.data_scale}
    return (
        under(NETWORK, unet) | encoder | under(OBSERVATION, {"scale": scale, "offset": offset}) | under(ACTION, action)
    )


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


def write_diffusion_policy(checkpoint: Checkpoint, spec: PolicySpec, out: Path) -> None:
    """Write a `.ckpt` for a workspace of the same sizes: `workspace.load_checkpoint(path, exclude_keys=["optimizer"])`.

    It holds weights, normalisers and the policy's part of the configuration; not the workspace's other settings.

    Raises:
        CheckpointError: If the policy has no counterpart there.
    """
    exportable(checkpoint, spec)
    model, ema = (_state(checkpoint.tensors(name), spec) for name in ("model", "ema"))
    states = {"model": model, "ema_model": ema}
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
        x, y = places(spec.encoder)
        constants = {"pool.temperature": torch.ones(1), "pool.pos_x": x[None], "pool.pos_y": y[None]}
        core = renamed(within(CAMERA_ENCODER, weights), ENCODER) | constants
        again = under("nets.0.", within("backbone.", core)) | under("nets.1.", within("pool.", core))
        state |= under(f"obs_encoder.obs_nets.{WRITTEN_CAMERA}.", core | again)
    for field, (scale, offset) in fields.items():
        low, high = (-1 - offset) / scale, (1 - offset) / scale
        values = {"scale": scale, "offset": offset, "input_stats.min": low, "input_stats.max": high}
        state |= under(f"{NORMALIZER}{field}.", values)
    return state | under("model.", within(NETWORK, weights))


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
        "noise_scheduler": noising | NOISING | {"prediction_type": spec.prediction},
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
        WRITTEN_CAMERA: {"shape": [3, SIZE, SIZE], "type": "rgb"},
        WRITTEN_AGENT: {"shape": [AGENT_DIM], "type": "low_dim"},
    }
    crop = None if spec.encoder.crop == SIZE else [spec.encoder.crop, spec.encoder.crop]
    shapes = {"obs": fields, "action": {"shape": [spec.action_dim]}}
    return config | HYBRID_SETTINGS | network | {"crop_shape": crop, "shape_meta": shapes}
