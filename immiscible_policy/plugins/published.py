"""What the bridges share: a policy of the published architecture, between the names of three projects.

The U-Net is the same in Diffusion Policy, in LeRobot and here, and so is the network of a camera. What a foreign
checkpoint must agree on is what the architecture here has no option for; everything else is read from it.

Shape legend: O observation steps, Do numbers or features per observation, E step embedding, P last pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from immiscible_policy.network.encoder import FEATURES, EncoderSpec
from immiscible_policy.policy.build import PolicySpec
from immiscible_policy.store.checkpoint import Checkpoint, CheckpointError
from immiscible_policy.tasks.pusht import CAMERA, SIZE

OBSERVED = {20: "keypoints", 5: "state"}
"""What is observed, by the numbers of one observation."""
PREDICTIONS = ("epsilon", "sample")
"""What the network may predict, in diffusers' terms."""
RESNET_WIDTH = 64
"""Channels of a ResNet-18's first stage."""
REDUCTION = 32
"""How much smaller than the picture the last maps are."""
FINAL_GROUPS = 8
"""Groups of the U-Net's last block, which in the other projects no option changes."""
NETWORK, OBSERVATION, ACTION = "network.", "observer.normalizer.", "action."
"""Where the weights of the U-Net and the normalisers are here."""
CAMERA_ENCODER = f"observer.encoder.obs_nets.{CAMERA}."
"""Where the weights of PushT's camera are here."""
AGENT_DIM = 2
"""Numbers of the agent's position."""
AGENT = {"keypoints": slice(18, 20), "state": slice(0, 2), "image": slice(FEATURES, FEATURES + AGENT_DIM)}
"""Where the agent's position lies in an observation here."""


@dataclass(frozen=True)
class ForeignCheckpoint(Checkpoint):
    """A checkpoint of another project, its weights under the names used here.

    Attributes:
        weights: What the policy that `metadata` describes takes.
    """

    weights: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def resumable(self) -> bool:
        """False: training goes on where it began."""
        return False

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The weights to evaluate, which are all that there is."""
        return dict(self.weights)


def foreign(
    path: Path, source: str, spec: PolicySpec, weights: Mapping[str, Tensor], step: int = 0
) -> ForeignCheckpoint:
    """Wrap weights, by their names here, as a checkpoint of the project `source`, trained for `step` steps if known."""
    metadata = {"policy": asdict(spec), "step": step, "seed": 0, "sha256": {}, "source": source}
    return ForeignCheckpoint(path, metadata, dict(weights))


def whole(value: Any) -> int:
    """A size from a configuration.

    Raises:
        TypeError: If it is no whole number.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"a whole number where it says {value}")
    return value


def lacks(path: Path, error: Exception) -> CheckpointError:
    """What to say of a configuration that misses a value, or has one of another kind."""
    return CheckpointError(f"{path}: the configuration lacks {error}")


def require(path: Path, config: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse a setting that the architecture here does not have.

    Raises:
        CheckpointError: Naming the first setting that differs.
    """
    for key, value in wanted.items():
        if config.get(key) != value:
            raise CheckpointError(f"{path}: {key}={config.get(key)}; only {key}={value} can be expressed here")


def exportable(checkpoint: Checkpoint, spec: PolicySpec) -> None:
    """Refuse a checkpoint whose policy another project has no words for.

    Raises:
        CheckpointError: If it does not diffuse, or sees, predicts or groups in a way that cannot be expressed.
    """
    path, encoder = checkpoint.path, spec.encoder
    if spec.method != "diffusion":
        raise CheckpointError(f"{path}: method={spec.method} does not diffuse; only a diffusion policy converts")
    if spec.prediction not in PREDICTIONS:
        raise CheckpointError(f"{path}: prediction={spec.prediction}; only {' and '.join(PREDICTIONS)} convert")
    if spec.groups != FINAL_GROUPS:
        raise CheckpointError(f"{path}: groups={spec.groups}; elsewhere the last block has {FINAL_GROUPS}")
    if encoder is None:
        return
    seen_side(path, [SIZE, SIZE], [encoder.crop, encoder.crop])
    if encoder != EncoderSpec((CAMERA,), encoder.crop, RESNET_WIDTH):
        raise CheckpointError(
            f"{path}: encoder_width={encoder.width}, cameras={','.join(encoder.cameras)}, "
            f"shared_encoder={encoder.shared}; "
            f"elsewhere it is a ResNet-18 of width {RESNET_WIDTH}, and here of PushT's one camera, {CAMERA}"
        )


def predicted(path: Path, prediction: Any) -> str:
    """The `prediction` of a setting `prediction_type`.

    Raises:
        CheckpointError: If it is another one.
    """
    if prediction not in PREDICTIONS:
        raise CheckpointError(f"{path}: prediction_type={prediction}; only {' and '.join(PREDICTIONS)} convert")
    return prediction


def observed(path: Path, numbers: int) -> str:
    """The `obs` of so many numbers per observation.

    Raises:
        CheckpointError: If PushT has no such observation.
    """
    if numbers not in OBSERVED:
        known = ", ".join(f"{count} ({name})" for count, name in OBSERVED.items())
        raise CheckpointError(f"{path}: {numbers} numbers per observation; PushT has {known}")
    return OBSERVED[numbers]


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


def seen_side(path: Path, sides: Sequence[int], crop: Sequence[int] | None) -> int:
    """Side of the square that is seen of PushT's pictures [px].

    Raises:
        CheckpointError: If the pictures have other sides, or what is seen is no square with the same middle.
    """
    crop = crop or sides
    if list(sides) != [SIZE, SIZE] or crop[0] != crop[1] or (SIZE - crop[0]) % 2:
        raise CheckpointError(f"{path}: pictures of {sides}, of which {crop} are seen; PushT's are {SIZE} x {SIZE}")
    return crop[0]


def check_pixels(path: Path, scale: Tensor, offset: Tensor) -> None:
    """Refuse pixels that are mapped from 0..1 to anything but -1..1.

    Raises:
        CheckpointError: If they are.
    """
    if not (torch.allclose(scale, torch.tensor(2.0)) and torch.allclose(offset, torch.tensor(-1.0))):
        raise CheckpointError(f"{path}: pixels are not mapped to -1..1 (a mean and a deviation of 0.5)")


def places(spec: EncoderSpec) -> tuple[Tensor, Tensor]:
    """The x and the y of the spatial softmax's pixels, row after row (P,) each."""
    side = torch.linspace(-1, 1, -(-spec.crop // REDUCTION))
    y, x = torch.meshgrid(side, side, indexing="ij")
    return x.flatten(), y.flatten()


def encoder_names(backbone: str, linear: str) -> dict[str, str]:
    """Where the parts of a camera's encoder are in another project, by where they are here.

    Args:
        backbone: Prefix there of the ResNet's stages, which are numbered; those left out have no weights.
        linear: Prefix there of the last layer.
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
