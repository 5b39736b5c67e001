"""The camera of LeRobot's diffusion policy: a ResNet-18 and a spatial softmax, as here, under other names.

    here, within encoder.obs_nets.img    there, within diffusion.rgb_encoder
    backbone.conv1, bn1, layer1..4       backbone.0, 1, 4..7          (the others have no weights)
    keypoints                            pool.nets                    (and pool.pos_grid, the places of its pixels)
    linear                               out

Pixels have to be mapped to -1..1, as here: by a mean and a deviation of 0.5, or from 0..1. Another map could be moved
into the first convolution, but for the zeros that it pads its borders with.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from immiscible_policy.demos.frames import CAMERA, SIZE
from immiscible_policy.plugins.published import RESNET_WIDTH, require, under, within
from immiscible_policy.policy.encoder import KEYPOINTS, EncoderSpec
from immiscible_policy.training.checkpoint import CheckpointError

IMAGE = "observation.image"
"""LeRobot's name for PushT's camera."""
SETTINGS = {
    "vision_backbone": "resnet18",
    "resize_shape": None,
    "use_group_norm": True,
    "spatial_softmax_num_keypoints": KEYPOINTS,
    "use_separate_rgb_encoder_per_camera": False,
}
REDUCTION = 32
"""How much smaller than the picture the last maps are."""
OURS, THEIRS = f"encoder.obs_nets.{CAMERA}.", "diffusion.rgb_encoder."
POSITIONS = "pool.pos_grid"
STAGES = {"backbone.conv1.": "backbone.0.", "backbone.bn1.": "backbone.1."}
NAMES = STAGES | {f"backbone.layer{i + 1}.": f"backbone.{i + 4}." for i in range(4)} | {
    "keypoints.": "pool.nets.",
    "linear.": "out.",
}  # fmt: skip


def cameras(features: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The features that are pictures."""
    return [name for name, feature in features.items() if feature.get("type") == "VISUAL"]


def read_encoder_spec(path: Path, config: Mapping[str, Any]) -> EncoderSpec | None:
    """What encodes the picture of LeRobot's configuration; None where nothing is seen.

    Raises:
        CheckpointError: If there are several cameras, or the encoder is of another architecture.
    """
    seen = cameras(config["input_features"])
    if not seen:
        return None
    if len(seen) > 1:
        raise CheckpointError(f"{path}: has {len(seen)} cameras ({', '.join(seen)}); PushT has one")
    require(path, config, SETTINGS)
    sides = config["input_features"][seen[0]]["shape"][1:]
    crop = config["crop_shape"] or sides
    if list(sides) != [SIZE, SIZE] or crop[0] != crop[1] or (SIZE - crop[0]) % 2:
        raise CheckpointError(f"{path}: pictures of {sides}, of which {crop} are seen; PushT's are {SIZE} x {SIZE}")
    return EncoderSpec((CAMERA,), crop[0], RESNET_WIDTH)


def check_pixels(path: Path, scale: Tensor, offset: Tensor) -> None:
    """Refuse pixels that are mapped from 0..1 to anything but -1..1.

    Raises:
        CheckpointError: If they are.
    """
    if not (torch.allclose(scale, torch.tensor(2.0)) and torch.allclose(offset, torch.tensor(-1.0))):
        raise CheckpointError(f"{path}: pixels are not mapped to -1..1 (a mean and a deviation of 0.5)")


def read_encoder(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's tensors under their names here."""
    theirs = {name: value for name, value in within(THEIRS, weights).items() if name != POSITIONS}
    return under(OURS, _renamed(theirs, {there: here for here, there in NAMES.items()}))


def write_encoder(weights: Mapping[str, Tensor], spec: EncoderSpec) -> dict[str, Tensor]:
    """The encoder's tensors under their names there, with the places of its pixels."""
    side = torch.linspace(-1, 1, -(-spec.crop // REDUCTION))
    y, x = torch.meshgrid(side, side, indexing="ij")
    places = {POSITIONS: torch.stack([x.flatten(), y.flatten()], dim=1)}
    return under(THEIRS, _renamed(within(OURS, weights), NAMES) | places)


def encoder_config(spec: EncoderSpec) -> dict[str, Any]:
    """LeRobot's settings of the encoder."""
    return SETTINGS | {"crop_shape": [spec.crop, spec.crop], "crop_is_random": True}


def _renamed(weights: Mapping[str, Tensor], prefixes: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors with their prefixes exchanged; those without a known one keep their names."""
    found = {}
    for name, value in weights.items():
        prefix = next((each for each in prefixes if name.startswith(each)), "")
        found[prefixes.get(prefix, "") + name.removeprefix(prefix)] = value
    return found
