"""The camera of Diffusion Policy's hybrid image policy: robomimic's ResNet-18 and spatial softmax, under other names.

    here, within encoder.obs_nets.img    there, within obs_encoder.obs_nets.CAMERA
    backbone.conv1, bn1, layer1..4       backbone.nets.0, 1, 4..7     (the others have no weights)
    keypoints                            pool.nets                    (and the constants pool.temperature, pos_x, pos_y)
    linear                               nets.3

There, `nets` holds the modules `backbone` and `pool` once more, as nets.0 and nets.1, and so do its weights. The
features of a camera and the agent's position follow one another as in `shape_meta.obs`; here the position comes last.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from immiscible_policy.network.encoder import EncoderSpec
from immiscible_policy.plugins.published import (
    AGENT_DIM,
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
from immiscible_policy.tasks.pusht import CAMERA, SIZE

SETTINGS = {"obs_as_global_cond": True, "obs_encoder_group_norm": True, "eval_fixed_crop": True}
STAGES = {"backbone.conv1.": "backbone.nets.0.", "backbone.bn1.": "backbone.nets.1."}
NAMES = STAGES | {f"backbone.layer{i + 1}.": f"backbone.nets.{i + 4}." for i in range(4)} | {
    "keypoints.": "pool.nets.",
    "linear.": "nets.3.",
}  # fmt: skip


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


WRITTEN = ("image", "agent_pos")
"""The names and their order in what is written."""


def read_observed(path: Path, policy: Mapping[str, Any]) -> Observed:
    """What the policy of a workspace's configuration observes.

    Raises:
        CheckpointError: If it is not one camera and two numbers, or the encoder is of another architecture.
    """
    require(path, policy, SETTINGS)
    shapes = {name: list(each["shape"]) for name, each in policy["shape_meta"]["obs"].items()}
    seen = [name for name, each in policy["shape_meta"]["obs"].items() if each.get("type") == "rgb"]
    agent = [name for name in shapes if name not in seen]
    if len(seen) != 1 or [shapes[name] for name in agent] != [[AGENT_DIM]]:
        told = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise CheckpointError(f"{path}: observes {told}; PushT has one camera and the agent's position [{AGENT_DIM}]")
    side = seen_side(path, shapes[seen[0]][1:], policy["crop_shape"])
    return Observed(seen[0], agent[0], list(shapes)[0] == agent[0], EncoderSpec((CAMERA,), side, RESNET_WIDTH))


def read_encoder(state: Mapping[str, Tensor], camera: str) -> dict[str, Tensor]:
    """The encoder's tensors under their names here; what is there twice is taken once."""
    theirs = within(f"obs_encoder.obs_nets.{camera}.", state)
    named = {name: value for name, value in theirs.items() if name.startswith(tuple(NAMES.values()))}
    return under(OURS, renamed(named, {there: here for here, there in NAMES.items()}))


def write_encoder(weights: Mapping[str, Tensor], spec: EncoderSpec) -> dict[str, Tensor]:
    """The encoder's tensors under their names there, with the constants of the spatial softmax."""
    x, y = places(spec)
    constants = {"pool.temperature": torch.ones(1), "pool.pos_x": x[None], "pool.pos_y": y[None]}
    core = renamed(within(OURS, weights), NAMES) | constants
    again = under("nets.0.", within("backbone.", core)) | under("nets.1.", within("pool.", core))
    return under(f"obs_encoder.obs_nets.{WRITTEN[0]}.", core | again)


def encoder_config(spec: EncoderSpec) -> dict[str, Any]:
    """Diffusion Policy's settings of the encoder."""
    crop = None if spec.crop == SIZE else [spec.crop, spec.crop]
    return SETTINGS | {"crop_shape": crop}
