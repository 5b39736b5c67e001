"""What the bridges share: a policy of the published architecture, between the names of three projects.

The U-Net is the same in Diffusion Policy, in LeRobot and here. What a foreign checkpoint must agree on is what the
architecture here has no option for; everything else is read from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from immiscible_policy.policy.build import PolicySpec
from immiscible_policy.training.checkpoint import Checkpoint, CheckpointError

OBSERVED = {20: "keypoints", 5: "state"}
"""What is observed, by the numbers of one observation."""
RESNET_WIDTH = 64
"""Channels of a ResNet-18's first stage."""
FINAL_GROUPS = 8
"""Groups of the U-Net's last block, which in the other projects no option changes."""


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
    """Wrap weights as a checkpoint.

    Args:
        path: Where they came from.
        source: The project.
        spec: The policy's sizes.
        weights: By their names here.
        step: Training steps done, where known.
    """
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


def lacks(path: Path, error: KeyError | TypeError) -> CheckpointError:
    """What to say of a configuration that misses a value, or has one of another kind."""
    return CheckpointError(f"{path}: the configuration lacks {error}")


def require(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse a setting that the architecture here does not have.

    Raises:
        CheckpointError: Naming the first setting that differs.
    """
    for key, value in wanted.items():
        if found.get(key) != value:
            raise CheckpointError(f"{path}: {key}={found.get(key)}; only {key}={value} can be expressed here")


def exportable(checkpoint: Checkpoint, spec: PolicySpec, *, images: bool = False) -> None:
    """Refuse a policy that another project has no words for.

    Args:
        checkpoint: What is written.
        spec: Its policy.
        images: Whether one that sees through a ResNet-18 has a counterpart.

    Raises:
        CheckpointError: If it does not diffuse, or sees or groups in a way that cannot be expressed.
    """
    if spec.method != "diffusion":
        raise CheckpointError(
            f"{checkpoint.path}: method={spec.method} does not diffuse; only a diffusion policy converts"
        )
    if spec.encoder is not None and not images:
        raise CheckpointError(f"{checkpoint.path}: obs={spec.obs}; only obs=keypoints and obs=state convert")
    if spec.encoder is not None and (spec.encoder.width != RESNET_WIDTH or len(spec.encoder.cameras) > 1):
        raise CheckpointError(
            f"{checkpoint.path}: encoder_width={spec.encoder.width}, {len(spec.encoder.cameras)} cameras; "
            f"elsewhere it is a ResNet-18 of width {RESNET_WIDTH} for one camera"
        )
    if spec.groups != FINAL_GROUPS:
        raise CheckpointError(f"{checkpoint.path}: groups={spec.groups}; elsewhere the last block has {FINAL_GROUPS}")


def observed(path: Path, numbers: int) -> str:
    """The `obs` of so many numbers per observation.

    Raises:
        CheckpointError: If PushT has no such observation.
    """
    if numbers not in OBSERVED:
        known = ", ".join(f"{count} ({name})" for count, name in OBSERVED.items())
        raise CheckpointError(f"{path}: {numbers} numbers per observation; PushT has {known}")
    return OBSERVED[numbers]


def within(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, named without it."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def under(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, named with `prefix` before."""
    return {prefix + name: value for name, value in weights.items()}
