"""What the bridges share: a policy of the published architecture, between the names of three projects.

The U-Net is the same in Diffusion Policy, in LeRobot and here, and so is the network of a camera. What a foreign
checkpoint must agree on is what the architecture here has no option for; everything else is read from it.

Shape legend: O observation steps, Do numbers or features per observation, E step embedding, P last pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from immiscible_policy.cli import one_line
from immiscible_policy.network.encoder import FEATURES, EncoderSpec
from immiscible_policy.policy.build import PolicySpec
from immiscible_policy.store.checkpoint import Checkpoint, CheckpointError
from immiscible_policy.store.reading import LARGEST
from immiscible_policy.tasks import ObservationLayout, find_task

TASK = find_task()  # what the other projects' checkpoints observe
assert TASK.published is not None
LAYOUT: ObservationLayout = TASK.published
NOISING = {"beta_schedule": "squaredcos_cap_v2", "clip_sample": True}  # in the terms of both projects
PREDICTIONS = ("epsilon", "sample")  # in diffusers' terms
RESNET_WIDTH = 64  # channels of a ResNet-18's first stage
REDUCTION = 32  # how much smaller than the picture the last maps are
FINAL_GROUPS = 8  # of the U-Net's last block, which in the other projects no option changes
# Where the weights of the U-Net, of the normalisers, and of the camera are here.
NETWORK, OBSERVATION, ACTION = "network.", "observer.normalizer.", "action."
CAMERA_ENCODER = f"observer.encoder.obs_nets.{LAYOUT.camera}."
AGENT_DIM = 2  # numbers of the agent's position
AGENT = {**LAYOUT.agent, "image": slice(FEATURES, FEATURES + AGENT_DIM)}
"""Where the agent's position lies in an observation here."""


@dataclass(frozen=True)
class ForeignCheckpoint(Checkpoint):
    """A checkpoint of another project, its weights under the names used here."""

    weights: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def resumable(self) -> bool:
        """False: training goes on where it began."""
        return False

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The weights to evaluate, which are all that there is."""
        return dict(self.weights)


def foreign(
    path: Path,
    source: str,
    spec: PolicySpec,
    weights: Mapping[str, Tensor],
    step: int = 0,
    sampling: Mapping[str, Any] | None = None,
) -> ForeignCheckpoint:
    """Wrap weights, by their names here, as a checkpoint of the project `source`, trained for `step` steps if known.

    `sampling` is its solver and what belongs to it, as in a run's options.
    """
    metadata = {"policy": asdict(spec), "step": step, "seed": 0, "sha256": {}, "source": source}
    return ForeignCheckpoint(path, metadata | ({"config": dict(sampling)} if sampling else {}), dict(weights))


def policy_spec(path: Path, settings: Mapping[str, Any], **sizes: Any) -> PolicySpec:
    """The specification that a configuration gives, under the names that Diffusion Policy and LeRobot share.

    `sizes` are what it does not say; also `method` and `prediction`, where it does not diffuse.

    Raises:
        CheckpointError: If the network predicts something else than `PREDICTIONS`; a KeyError if a setting is missing,
            a TypeError if one is of another kind.
    """
    if "method" not in sizes:
        sizes |= {"method": "diffusion", "prediction": settings["prediction_type"]}
        if sizes["prediction"] not in PREDICTIONS:
            known = " and ".join(PREDICTIONS)
            raise CheckpointError(f"{path}: prediction_type={sizes['prediction']}; only {known} convert")
    return PolicySpec(
        **sizes,
        horizon=whole(settings["horizon"]),
        obs_steps=whole(settings["n_obs_steps"]),
        action_steps=whole(settings["n_action_steps"]),
        diffusion_steps=whole(settings["num_train_timesteps"]),
        data_scale=float(settings["clip_sample_range"]),
        down_dims=tuple(whole(channels) for channels in settings["down_dims"]),
        step_embed_dim=whole(settings["diffusion_step_embed_dim"]),
        kernel_size=whole(settings["kernel_size"]),
        groups=whole(settings["n_groups"]),
    )


def whole(value: Any) -> int:
    """A size from a configuration; a TypeError if it is not a whole number."""
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > LARGEST:
        raise TypeError(f"a whole number where it says {str(value)[:40]}")
    return value


def lacks(path: Path, error: Exception) -> CheckpointError:
    """What to say of a configuration that misses a value, or has one of another kind."""
    return CheckpointError(f"{path}: the configuration lacks {error}")


def converting(read: Callable[[Path], ForeignCheckpoint]) -> Callable[[Path], ForeignCheckpoint]:
    """Make parts of other kinds or shapes than a policy's a CheckpointError that names the path."""

    @wraps(read)
    def reading(path: Path) -> ForeignCheckpoint:
        try:
            return read(path)
        except CheckpointError:
            raise
        except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path} is not a policy that converts ({one_line(error)[:120]})") from None

    return reading


def normalizers(observation: Sequence[Tensor], action: Sequence[Tensor], spec: PolicySpec) -> dict[str, Tensor]:
    """The tensors of both normalisers here; scale and offset (Do,) and (Da,), the actions' as they are elsewhere."""
    parts = ("scale", "offset")
    scaled = dict(zip(parts, (values / spec.data_scale for values in action), strict=True))
    return under(OBSERVATION, dict(zip(parts, observation, strict=True))) | under(ACTION, scaled)


def require(path: Path, config: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse settings that the architecture here does not have, by a CheckpointError that names the first."""
    for key, value in wanted.items():
        if config.get(key) != value:
            raise CheckpointError(f"{path}: {key}={config.get(key)}; only {key}={value} can be expressed here")


def exportable(checkpoint: Checkpoint, spec: PolicySpec, methods: Sequence[str] = ("diffusion",)) -> None:
    """Refuse a checkpoint whose policy another project, which has these methods, has no words for.

    Raises CheckpointError if it has another method, or sees, predicts or groups in a way that cannot be expressed.
    """
    path, encoder = checkpoint.path, spec.encoder
    if spec.method not in methods:
        raise CheckpointError(f"{path}: method={spec.method}; only {' and '.join(methods)} convert")
    known = PREDICTIONS if spec.method == "diffusion" else ("velocity",)
    if spec.prediction not in known:
        raise CheckpointError(f"{path}: prediction={spec.prediction}; only {' and '.join(known)} convert")
    if spec.groups != FINAL_GROUPS:
        raise CheckpointError(f"{path}: groups={spec.groups}; elsewhere the last block has {FINAL_GROUPS}")
    if encoder and encoder != encoder_spec(path, [LAYOUT.side] * 2, [encoder.crop, encoder.crop]):
        own = f"encoder_width={encoder.width}, cameras={','.join(encoder.cameras)}, shared_encoder={encoder.shared}"
        theirs = f"a ResNet-18 of width {RESNET_WIDTH}, and here of {TASK.title}'s one camera, {LAYOUT.camera}"
        raise CheckpointError(f"{path}: {own}; elsewhere it is {theirs}")


def observed(path: Path, numbers: int) -> str:
    """The `obs` of so many numbers per observation; a CheckpointError if the task has none."""
    if numbers not in LAYOUT.numbers:
        known = ", ".join(f"{count} ({name})" for count, name in LAYOUT.numbers.items())
        raise CheckpointError(f"{path}: {numbers} numbers per observation; {TASK.title} has {known}")
    return LAYOUT.numbers[numbers]


def agent_first(spec: PolicySpec) -> Tensor:
    """Where the numbers of an observation, in the order agent, then block or its features, lie in ours (Do,)."""
    numbers = torch.arange(spec.encoder.features(spec.obs_dim) if spec.encoder else spec.obs_dim)
    agent = numbers[AGENT[spec.obs]]
    return torch.cat([agent, numbers[~torch.isin(numbers, agent)]])


def reordered(unet: Mapping[str, Tensor], order: Tensor, spec: PolicySpec) -> dict[str, Tensor]:
    """A U-Net's tensors for observations whose numbers are put into another order (Do,) within each step.

    The condition makes the columns (.., E + O * Do) of the blocks' linear layers, which have the same name in all
    three projects.
    """
    columns = spec.step_embed_dim + torch.arange(spec.obs_steps)[:, None] * len(order) + order  # (O, Do)
    every = torch.cat([torch.arange(spec.step_embed_dim), columns.flatten()])
    return {
        name: value[:, every] if name.endswith("cond_encoder.1.weight") and value.shape[1] == len(every) else value
        for name, value in unet.items()
    }


def encoder_spec(path: Path, sides: Sequence[int], crop: Sequence[int] | None) -> EncoderSpec:
    """What encodes a square of the camera's pictures [px]; a CheckpointError for other sides or another middle."""
    crop, side = crop or sides, LAYOUT.side
    if list(sides) != [side, side] or crop[0] != crop[1] or (side - crop[0]) % 2:
        seen = f"pictures of {sides}, of which {crop} are seen"
        raise CheckpointError(f"{path}: {seen}; {TASK.title}'s are {side} x {side}")
    return EncoderSpec((LAYOUT.camera,), crop[0], RESNET_WIDTH)


def check_pixels(path: Path, scale: Tensor, offset: Tensor) -> None:
    """Refuse pixels that are mapped from 0..1 to anything but -1..1, by a CheckpointError."""
    if not (torch.allclose(scale, torch.tensor(2.0)) and torch.allclose(offset, torch.tensor(-1.0))):
        raise CheckpointError(f"{path}: pixels are not mapped to -1..1 (a mean and a deviation of 0.5)")


def places(spec: EncoderSpec) -> tuple[Tensor, Tensor]:
    """The x and the y of the spatial softmax's pixels, row after row (P,) each."""
    side = torch.linspace(-1, 1, -(-spec.crop // REDUCTION))
    y, x = torch.meshgrid(side, side, indexing="ij")
    return x.flatten(), y.flatten()


def encoder_names(backbone: str, linear: str) -> dict[str, str]:
    """Where the parts of a camera's encoder are in another project, by where they are here: prefixes.

    There, the ResNet's stages are numbered behind `backbone`; those left out have no weights.
    """
    stages = {"conv1": 0, "bn1": 1} | {f"layer{i + 1}": i + 4 for i in range(4)}
    named = {f"backbone.{stage}.": f"{backbone}{number}." for stage, number in stages.items()}
    return named | {"keypoints.": "pool.nets.", "linear.": linear}


def renamed(weights: Mapping[str, Tensor], prefixes: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors with their prefixes exchanged; those without a known one keep their names."""
    result = {}
    for name, value in weights.items():
        prefix = next((known for known in prefixes if name.startswith(known)), "")
        result[prefixes.get(prefix, "") + name.removeprefix(prefix)] = value
    return result


def within(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, named without it."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def under(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, named with `prefix` before."""
    return {prefix + name: value for name, value in weights.items()}
