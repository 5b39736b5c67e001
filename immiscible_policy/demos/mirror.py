"""Mirrored demonstrations: PushT looks the same in a mirror that stands on the goal T's axis of symmetry.

Agent, block, actions and images are reflected; keypoints, which do not lie symmetrically on the block, are
those of the reflected pose. The walls (5 to 506 px) are centred half a pixel beside that axis, so a push
against a wall comes out one pixel off.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from immiscible_envs.geometry import GOAL_POSE, keypoints, mirror_point, mirror_state
from immiscible_policy.demos.store import Demonstrations, Frames


def mirror(demos: Demonstrations, goal: ArrayLike = GOAL_POSE) -> Demonstrations:
    """Append each episode's mirror image: twice the episodes, the originals first, then their reflections.

    Args:
        demos: The episodes.
        goal: (3,) goal pose x, y [px], angle [rad], whose axis is the mirror.

    Raises:
        ValueError: As `reflect`.
    """
    twin = reflect(demos, goal)
    return replace(
        demos,
        state=np.concatenate([demos.state, twin.state]),
        action=np.concatenate([demos.action, twin.action]),
        keypoint=np.concatenate([demos.keypoint, twin.keypoint]),
        n_contacts=None if demos.n_contacts is None else np.tile(demos.n_contacts, 2),
        image=_join(demos.image, twin.image),
        episode_ends=np.concatenate([demos.episode_ends, demos.episode_ends + len(demos)]),
        views={},
    )


def reflect(demos: Demonstrations, goal: ArrayLike = GOAL_POSE) -> Demonstrations:
    """Reflect every episode about the goal's axis of symmetry; twice gives the originals, up to rounding.

    Cameras other than `img` are left out: what they would see in the mirror is not known.

    Args:
        demos: The episodes.
        goal: (3,) goal pose x, y [px], angle [rad].

    Raises:
        ValueError: If the demonstrations hold images and the axis is not the image's anti-diagonal: pixels do
            not map onto pixels then. `dataclasses.replace(demos, image=None)` leaves them out.
    """
    if demos.image is not None and not np.allclose(mirror_point(_CORNERS, goal), _CORNERS[::-1]):
        raise ValueError(
            "images can be mirrored about their anti-diagonal only, as the goal (256, 256, pi/4) does; "
            f"leave them out. Got goal={np.asarray(goal).tolist()}"
        )
    state = mirror_state(demos.state, goal)
    image = demos.image
    return replace(
        demos,
        state=state.astype(demos.state.dtype),
        action=mirror_point(demos.action, goal).astype(demos.action.dtype),
        keypoint=keypoints(state[:, 2:]).astype(demos.keypoint.dtype),
        image=None if image is None else replace(image, mirrored=~image.mirrored),
        views={},
    )


_CORNERS = np.array([[0.0, 0.0], [512.0, 512.0]])
"""Two corners of the workspace [px]; the image's anti-diagonal is the mirror that swaps them."""


def _join(first: Frames | None, second: Frames | None) -> Frames | None:
    if first is None or second is None:
        return None
    rows = np.concatenate([first.rows, second.rows])
    return Frames(first.array, rows, np.concatenate([first.mirrored, second.mirrored]))
