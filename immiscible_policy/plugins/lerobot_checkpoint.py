"""LeRobot's directory of a diffusion policy: read here, and written for `DiffusionPolicy.from_pretrained`.

A policy of flow matching has the type `immiscible_flow` there, of the plugin `lerobot_policy_immiscible`.

    config.json                    sizes and settings
    model.safetensors              weights
    policy_preprocessor.json       names the file with the statistics that observations and actions are normalised by
    policy_postprocessor.json      the same for the actions that come out

The names (lerobot 0.4.4 and 0.6.1):

    here                                   there
    network.NAME                           diffusion.unet.NAME, in which
      blocks.0, blocks.1                     conv1, conv2
      down_modules.I.2.conv, up_...          down_modules.I.2, up_...
      columns of cond_encoder.1.weight       in the order (agent, block) instead of that of the observation
    observer.normalizer, action            statistics: min and max
    data_scale                             clip_sample_range, and narrower min and max of the action
    within observer.encoder.obs_nets.img   within diffusion.rgb_encoder (its 0, if each camera has one of its own)
      backbone.conv1, bn1, layer1..4         backbone.0, 1, 4..7    (the others have no weights)
      keypoints                              pool.nets              (and pool.pos_grid, the places of its pixels)
      linear                                 out

An observation is there split in two: `observation.state` is the agent's position, and
`observation.environment_state` the block, as keypoints (18 numbers), corners (16) or as its pose (3); or a camera sees
the block, whose 64 features come after the agent's position there, and before it here. Pixels have to be mapped to
-1..1, as here: by a mean and a deviation of 0.5, or from 0..1. Another map could be moved into the first convolution,
but for the zeros that it pads its borders with.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from immiscible_policy.cli import one_line
from immiscible_policy.evaluation.agent import solver_of
from immiscible_policy.network.encoder import KEYPOINTS
from immiscible_policy.plugins import published
from immiscible_policy.plugins.published import AGENT_DIM, CAMERA_ENCODER, LAYOUT, NETWORK, OBSERVATION, TASK
from immiscible_policy.policy.build import PolicySpec
from immiscible_policy.solver import Solver
from immiscible_policy.store.checkpoint import Checkpoint, CheckpointError
from immiscible_policy.store.reading import read_json

FLOW = "immiscible_flow"
TYPES = ("diffusion", "immiscible", FLOW)
STATE, BLOCK, ACTION = "observation.state", "observation.environment_state", "action"
IMAGE = "observation.image"  # LeRobot's name for the camera
SETTINGS = {"use_film_scale_modulation": True, "n_groups": published.FINAL_GROUPS} | published.NOISING
ENCODER_SETTINGS = {"vision_backbone": "resnet18", "resize_shape": None, "use_group_norm": True,
                    "spatial_softmax_num_keypoints": KEYPOINTS}  # fmt: skip
WRITTEN = {"use_separate_rgb_encoder_per_camera": False, "pretrained_backbone_weights": None, "crop_is_random": True}
"""What any value of is read: nothing depends on it, with one camera and weights that are there."""
ENCODER = published.encoder_names("backbone.", "out.")
HERE = {there: here for here, there in ENCODER.items()}
THEIR_ENCODER, POSITIONS = "diffusion.rgb_encoder.", "pool.pos_grid"
RENAMED = {r"\.blocks\.0\.": ".conv1.", r"\.blocks\.1\.": ".conv2.", r"(modules\.\d+\.2)\.conv\.": r"\1."}
BACK = {r"\.conv1\.": ".blocks.0.", r"\.conv2\.": ".blocks.1.", r"(modules\.\d+\.2)\.(weight|bias)": r"\1.conv.\2"}
MODES = dict.fromkeys(("VISUAL", "STATE", "ENV", "ACTION"), "MIN_MAX")  # of features in what is written here
EPSILON = 1e-8  # LeRobot adds it to a standard deviation


@published.converting
def read_lerobot(path: Path) -> published.ForeignCheckpoint:
    """Open a directory that LeRobot saved (`.../pretrained_model`); its weights are what LeRobot evaluates.

    Raises CheckpointError if a file is missing or damaged, or the policy is of another architecture.
    """
    config = _json(path / "config.json")
    if config.get("type") not in TYPES:
        raise CheckpointError(f"{path}: a policy of type {config.get('type')}; only {' and '.join(TYPES)} convert")
    published.require(path, config, SETTINGS)
    try:
        spec = _spec(path, config)
    except (KeyError, TypeError) as error:
        raise published.lacks(path, error) from None
    weights = _tensors(path / "model.safetensors")
    unet = {_rename(name, BACK): value for name, value in published.within("diffusion.unet.", weights).items()}
    theirs = published.within(f"{THEIR_ENCODER}0.", weights) or published.within(THEIR_ENCODER, weights)
    weighty = {name: value for name, value in theirs.items() if name != POSITIONS}
    encoder = published.under(CAMERA_ENCODER, published.renamed(weighty, HERE))
    ordered = published.under(NETWORK, published.reordered(unet, published.agent_first(spec).argsort(), spec))
    sampling = {
        "solver": "euler",
        "sampling_steps": config.get("num_inference_steps"),
        "spacing": config.get("spacing"),
    }
    weights = ordered | encoder | _normalisers(path, config, spec)
    return published.foreign(path, "LeRobot", spec, weights, sampling=sampling if spec.method == "flow" else None)


def _spec(path: Path, config: Mapping[str, Any]) -> PolicySpec:
    features = config["input_features"] | config["output_features"]
    seen = _cameras(features)
    sizes = {name: feature["shape"][0] for name, feature in features.items() if name not in seen}
    if sizes.keys() != {STATE, ACTION} | (set() if seen else {BLOCK}) or sizes[STATE] != AGENT_DIM:
        needed = f"{TASK.title} needs {STATE} (2 numbers), {ACTION}, and {BLOCK} or a camera"
        raise CheckpointError(f"{path}: has {', '.join(features)}; {needed}")
    if len(seen) > 1:
        raise CheckpointError(f"{path}: has {len(seen)} cameras ({', '.join(seen)}); {TASK.title} has one")
    encoder, numbers = None, sizes[STATE] + sizes.get(BLOCK, 0)
    if seen:
        published.require(path, config, ENCODER_SETTINGS)
        encoder = published.encoder_spec(path, features[seen[0]]["shape"][1:], config["crop_shape"])
    obs = "image" if encoder else published.observed(path, numbers)
    learned = {"method": "flow", "prediction": "velocity"} if config["type"] == FLOW else {}
    sizes = {"obs_dim": numbers, "action_dim": sizes[ACTION]}
    return published.policy_spec(path, config, obs=obs, encoder=encoder, **sizes, **learned)


def _cameras(features: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [name for name, feature in features.items() if feature.get("type") == "VISUAL"]


def _rename(name: str, rules: Mapping[str, str]) -> str:
    for pattern, replacement in rules.items():
        name = re.sub(pattern, replacement, name)
    return name


def _normalisers(path: Path, config: Mapping[str, Any], spec: PolicySpec) -> dict[str, Tensor]:
    """Scales and offsets from the statistics beside the weights."""
    steps = _json(path / "policy_preprocessor.json").get("steps", [])
    files = [step.get("state_file") for step in steps if step.get("registry_name") == "normalizer_processor"]
    if len(files) != 1 or Path(str(files[0])).name != files[0]:
        raise CheckpointError(f"{path}: policy_preprocessor.json names no file of statistics")
    modes, stats = config.get("normalization_mapping", {}), _tensors(path / files[0])
    features = config["input_features"] | config["output_features"]
    affine = {
        key: _affine(path, key, modes.get(feature["type"], "IDENTITY"), stats, feature["shape"][0])
        for key, feature in features.items()
    }
    for camera in _cameras(features):
        published.check_pixels(path, *affine.pop(camera))
    observation = [torch.cat([affine[key][i] for key in (STATE, BLOCK) if key in affine]) for i in (0, 1)]
    if spec.encoder is None:
        observation = [values[published.agent_first(spec).argsort()] for values in observation]
    return published.normalizers(observation, affine[ACTION], spec)


def _affine(path: Path, key: str, mode: str, stats: Mapping[str, Tensor], size: int) -> tuple[Tensor, Tensor]:
    """Scale and offset (size,) of a feature; a CheckpointError if they are unknown or a number is constant."""
    if mode == "IDENTITY":
        return torch.ones(size), torch.zeros(size)
    names = {"MIN_MAX": ("min", "max"), "MEAN_STD": ("mean", "std")}.get(mode)
    if names is None:
        raise CheckpointError(f"{path}: {key} is normalised by {mode}; only IDENTITY, MIN_MAX and MEAN_STD convert")
    missing = [name for name in names if f"{key}.{name}" not in stats]
    if missing:
        raise CheckpointError(f"{path}: the statistics lack {key}.{missing[0]}; save the policy with its processors")
    first, second = (stats[f"{key}.{name}"].double() for name in names)
    width = (second - first) / 2 if mode == "MIN_MAX" else second + EPSILON
    centre = (first + second) / 2 if mode == "MIN_MAX" else first
    if not (width > 0).all():
        raise CheckpointError(f"{path}: {key} does not vary in number {int((width <= 0).nonzero()[0])}")
    return (1 / width).float(), (-centre / width).float()


def write_lerobot(checkpoint: Checkpoint, spec: PolicySpec, out: Path) -> None:
    """Write a directory for LeRobot's `DiffusionPolicy.from_pretrained`, with its processors: the EMA weights.

    A CheckpointError if the policy has no counterpart there.
    """
    published.exportable(checkpoint, spec, ("diffusion", "flow"))
    if not spec.encoder and LAYOUT.numbers.get(spec.obs_dim) != spec.obs:
        known = ", ".join(LAYOUT.numbers.values())
        own = f"obs={spec.obs} of {spec.obs_dim} numbers"
        raise CheckpointError(f"{checkpoint.path}: {own}; LeRobot takes {TASK.title}'s alone ({known}, image)")
    if spec.horizon % 2 ** len(spec.down_dims):
        raise CheckpointError(f"{checkpoint.path}: LeRobot needs a horizon that divides by {2 ** len(spec.down_dims)}")
    weights = checkpoint.tensors("ema")
    ordered = published.reordered(published.within(NETWORK, weights), published.agent_first(spec), spec)
    theirs = published.under("diffusion.unet.", {_rename(name, RENAMED): value for name, value in ordered.items()})
    if spec.encoder:
        positions = {POSITIONS: torch.stack(published.places(spec.encoder), dim=1)}
        camera = published.renamed(published.within(CAMERA_ENCODER, weights), ENCODER)
        theirs |= published.under(THEIR_ENCODER, camera | positions)
    seen = {IMAGE: {"type": "VISUAL", "shape": [3, LAYOUT.side, LAYOUT.side]}}
    block = {BLOCK: {"type": "ENV", "shape": [spec.obs_dim - AGENT_DIM]}}
    features = {
        STATE: {"type": "STATE", "shape": [AGENT_DIM]},
        **(seen if spec.encoder else block),
        ACTION: {"type": "ACTION", "shape": [spec.action_dim]},
    }
    out.mkdir(parents=True)
    solver = solver_of(checkpoint)
    (out / "config.json").write_text(json.dumps(_config(spec, features, solver), indent=2) + "\n")
    _write_tensors(out / "model.safetensors", theirs)
    _write_processors(out, features, _ranges(weights, spec))


def _config(spec: PolicySpec, features: Mapping[str, dict[str, Any]], solver: Solver) -> dict[str, Any]:
    """LeRobot's configuration; what is left out keeps its default there."""
    chain = {"type": "diffusion", "prediction_type": spec.prediction}
    straight = {"type": FLOW, "num_inference_steps": solver.steps, "spacing": solver.spacing}
    sizes = {
        **(straight if spec.method == "flow" else chain),
        "n_obs_steps": spec.obs_steps,
        "input_features": {name: feature for name, feature in features.items() if name != ACTION},
        "output_features": {ACTION: features[ACTION]},
        "device": "cpu",
        "horizon": spec.horizon,
        "n_action_steps": spec.action_steps,
        "normalization_mapping": MODES,
        "drop_n_last_frames": spec.horizon - spec.action_steps - spec.obs_steps + 1,
        "down_dims": list(spec.down_dims),
        "kernel_size": spec.kernel_size,
        "diffusion_step_embed_dim": spec.step_embed_dim,
        "noise_scheduler_type": "DDPM",
        "num_train_timesteps": spec.diffusion_steps,
        "clip_sample_range": spec.data_scale,
    }
    if spec.encoder is None:
        return sizes | SETTINGS
    return sizes | SETTINGS | ENCODER_SETTINGS | WRITTEN | {"crop_shape": [spec.encoder.crop, spec.encoder.crop]}


def _ranges(weights: Mapping[str, Tensor], spec: PolicySpec) -> dict[str, Tensor]:
    """Smallest and largest value of each feature: what is normalised to -1 and 1."""
    numbers = torch.arange(AGENT_DIM) if spec.encoder else published.agent_first(spec)
    parts = [
        (STATE, OBSERVATION, numbers[:AGENT_DIM], 1.0),
        (BLOCK, OBSERVATION, numbers[AGENT_DIM:], 1.0),
        (ACTION, published.ACTION, torch.arange(spec.action_dim), spec.data_scale),
    ]
    ranges = {f"{IMAGE}.min": torch.zeros(3, 1, 1), f"{IMAGE}.max": torch.ones(3, 1, 1)} if spec.encoder else {}
    for key, here, rows, factor in parts:
        if not len(rows):
            continue
        scale, offset = (factor * weights[here + part][rows].double() for part in ("scale", "offset"))
        ranges[f"{key}.min"], ranges[f"{key}.max"] = ((-1 - offset) / scale).float(), ((1 - offset) / scale).float()
    return ranges


def _write_processors(out: Path, features: Mapping[str, Any], ranges: Mapping[str, Tensor]) -> None:
    """Write the steps before and after the policy, and the statistics that both use."""
    device = {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}}
    before = [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
        {"registry_name": "to_batch_processor", "config": {}},
        device,
        _normalising(out, "policy_preprocessor_step_3_normalizer_processor", features, ranges),
    ]
    action = {ACTION: features[ACTION]}
    after = [_normalising(out, "policy_postprocessor_step_0_unnormalizer_processor", action, ranges), device]
    for name, steps in (("policy_preprocessor", before), ("policy_postprocessor", after)):
        (out / f"{name}.json").write_text(json.dumps({"name": name, "steps": steps}, indent=2) + "\n")


def _normalising(out: Path, name: str, features: Mapping[str, Any], ranges: Mapping[str, Tensor]) -> dict[str, Any]:
    """A step that normalises or undoes it; its statistics are written beside it."""
    _write_tensors(out / f"{name}.safetensors", ranges)
    return {
        "registry_name": re.sub(r".*_step_\d_", "", name),
        "config": {"eps": EPSILON, "features": dict(features), "norm_map": MODES},
        "state_file": f"{name}.safetensors",
    }


def _write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    contiguous = {name: value.contiguous() for name, value in tensors.items()}
    safetensors.torch.save_file(contiguous, file, {"format": "pt"})


def _json(file: Path) -> dict[str, Any]:
    try:
        return read_json(file, "save the policy with lerobot 0.4 or newer")
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(file.read_bytes())
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read ({one_line(error)}); use another checkpoint") from None
