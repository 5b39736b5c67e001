"""The camera of LeRobot's diffusion policy: a ResNet-18 and a spatial softmax, as here, under other names.

    here, within encoder.obs_nets.img    there, within diffusion.rgb_encoder (its 0, if each camera has one of its own)
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

from immiscible_policy.network.encoder import KEYPOINTS, EncoderSpec
from immiscible_policy.plugins.published import (
    OURS,
    RESNET_WIDTH,
    places,
    renamed,
    require,
    seen_side,
    under,
    within,
)
from immiscible_policy.store.checkpoint import CheckpointError
from immiscible_policy.tasks.pusht import CAMERA

IMAGE = "observation.image"
"""LeRobot's name for PushT's camera."""
SETTINGS = {
    "vision_backbone": "resnet18",
    "resize_shape": None,
    "use_group_norm": True,
    "spatial_softmax_num_keypoints": KEYPOINTS,
}
WRITTEN = {"use_separate_rgb_encoder_per_camera": False, "pretrained_backbone_weights": None, "crop_is_random": True}
"""What any value of is read: nothing depends on it, with one camera and weights that are there."""
THEIRS = "diffusion.rgb_encoder."
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
    side = seen_side(path, config["input_features"][seen[0]]["shape"][1:], config["crop_shape"])
    return EncoderSpec((CAMERA,), side, RESNET_WIDTH)


def read_encoder(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's tensors under their names here."""
    theirs = within(f"{THEIRS}0.", weights) or within(THEIRS, weights)
    back = {there: here for here, there in NAMES.items()}
    return under(OURS, renamed({name: value for name, value in theirs.items() if name != POSITIONS}, back))


def write_encoder(weights: Mapping[str, Tensor], spec: EncoderSpec) -> dict[str, Tensor]:
    """The encoder's tensors under their names there, with the places of its pixels."""
    return under(THEIRS, renamed(within(OURS, weights), NAMES) | {POSITIONS: torch.stack(places(spec), dim=1)})


def encoder_config(spec: EncoderSpec) -> dict[str, Any]:
    """LeRobot's settings of the encoder."""
    return SETTINGS | WRITTEN | {"crop_shape": [spec.crop, spec.crop]}
