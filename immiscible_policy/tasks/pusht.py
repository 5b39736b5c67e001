"""PushT: push a T-shaped block onto its goal (see `immiscible_envs.pusht`). All that the learner knows of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pymunk
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

import immiscible_envs
from immiscible_envs import expert
from immiscible_envs.geometry import CENTER_OF_GRAVITY, keypoints, mirror_point, mirror_state, place
from immiscible_envs.lerobot import CORNERS, TASK, fit_pose
from immiscible_envs.modes import MODES, begins_upside_down, classify, decided, symmetric_starts
from immiscible_envs.rendering import render_state
from immiscible_envs.simulation import CONTROL_HZ, WORKSPACE
from immiscible_policy.cli import shipped
from immiscible_policy.demos import checks
from immiscible_policy.demos.checks import Column
from immiscible_policy.demos.chunks import StoreError
from immiscible_policy.demos.demonstrations import Demonstrations, join
from immiscible_policy.demos.download import Archive
from immiscible_policy.demos.export import Feature
from immiscible_policy.tasks.task import Array, Metric, Modes, ObservationLayout, Observed, Task

ENVIRONMENT = "immiscible/PushT-v0"
CAMERA, SIZE = "img", 96
"""The camera, from above, as the environment and the published store show it, and the side of its pictures [px]."""
KEYPOINT_TOLERANCE = 3.0
"""Largest distance [px] of stored keypoints from those of the stored pose; the human store reaches 2.2."""
FIT_TOLERANCE = 0.1
"""Largest distance [px] of a corner from the fitted T; float32 rounding stays below 0.001."""
TELEOPERATION = """\
Push the T onto the green goal with the mouse. Touch the blue agent with the pointer to take hold of it; from then on
it follows the pointer and every step (0.1 s) is recorded. Covering the goal saves the episode and begins the next.

  R  retry: drop this episode and begin it again
  S  save this episode as it is and begin the next
  Q  quit: drop this episode; all saved ones are in the store"""
HUMAN_DATA = (
    "2b639404c122f24ded6ba12005d92429dfc5e916d5e956089db55fffcaa7fb6c",
    "99dd4261dd5cc1c31a49f43ea8a8529efe104665246ddd3a89246fc7ffce187a",
)
"""Content hashes of the 206 published demonstrations, without images and with them."""
CORNER_FEATURE = "observation.environment_state"


class PushT(Task):
    """The task; episodes begin where the published mapping puts the start seeds. A scene is a state (5,)."""

    name = "pusht"
    title = "PushT"
    about = "PushT. Coverage: the largest share of the goal that the T covers in an episode, 0 to 1."
    measured = "coverage of the goal"
    instruction = TASK
    max_steps = immiscible_envs.MAX_EPISODE_STEPS
    fps = CONTROL_HZ
    observations = ("keypoints", "corners", "state", "image", "agent", "nothing")
    metrics = (
        Metric("coverage", "max_coverage", "max", lambda reward, info: info["coverage"]),
        Metric("final_coverage", "final_coverage", "last", lambda reward, info: info["coverage"]),
        Metric("reward", "max_reward", "max", lambda reward, info: reward),
        Metric("success", "success", "any", lambda reward, info: info["is_success"]),
    )
    columns = {
        "state": Column((5,), "f", names=("agent x", "agent y", "block x", "block y", "block angle")),
        "action": Column((2,), "f", names=("x", "y")),
        "keypoint": Column((9, 2), "f"),
        "n_contacts": Column((1,), required=False),
        CAMERA: Column((None, None, 3), required=False),
    }
    cures = {
        r"should lie in 0\.\.|does not span": "store positions in pixels of the workspace, not normalised, not shifted",
        r"from where data/state puts": "recompute data/keypoint with immiscible_envs.geometry.keypoints(state[:, 2:5])",
    }
    archive = Archive(
        "https://diffusion-policy.cs.columbia.edu/data/training/pusht.zip",
        "pusht_cchi_v7_replay.zarr",
        "99dd4261dd5cc1c31a49f43ea8a8529efe104665246ddd3a89246fc7ffce187a",
        "the 206 human PushT demonstrations of Diffusion Policy (Chi et al., RSS 2023; MIT)",
    )
    published = ObservationLayout(
        {20: "keypoints", 18: "corners", 5: "state"},
        {"keypoints": slice(18, 20), "corners": slice(16, 18), "state": slice(0, 2)},
        CAMERA,
        SIZE,
    )
    teleoperation = TELEOPERATION
    expert_episodes = 220
    made_by = {
        "made_by": "a scripted expert: planned pushes carried out in immiscible_envs.simulation, no human data",
        "pymunk": pymunk.version,
    }
    modes = Modes(
        title="Which way round from symmetric starts",
        names=MODES,
        options={"state": symmetric_starts()},
        alike="that begin nearly upside down",
        classify=lambda states: int(classify(states[:, 4])),
        is_alike=lambda states: begins_upside_down(states[:, 4]),
        decided=lambda states, mode: decided(states[:, 4], mode),
        tracks={
            "agent": lambda states: states[:, :2],
            "block's centre of gravity": lambda states: place([CENTER_OF_GRAVITY], states[:, 2:])[:, 0],
        },
        extent=(0, WORKSPACE, WORKSPACE, 0),
        published=(
            ("published: vanilla, 10 seeds", "0.976", "0.9516"),
            ("published: assignment, 10 seeds", "0.65", "0.9539"),
        ),
        protocol={
            "method": "diffusion",
            "prediction": "epsilon",
            "mirror_batches": True,
            "epochs": 5000,
            "solver": "ddpm",
            "sampling_steps": 100,
            "starts": 1,
            "repetitions": 50,
            "noise": ["vanilla", "idp26 start=50ep"],
            "data": list(HUMAN_DATA),
        },
    )

    def make(self, num_envs: int, obs: str) -> VectorEnv[Any, Any, Any]:
        """For pictures and for less than the state it shows the state, of which `look` makes what the policy sees."""
        return gymnasium.make_vec(
            ENVIRONMENT,
            num_envs=num_envs,
            vectorization_mode="vector_entry_point",
            obs_type="keypoints" if obs == "keypoints" else "state",
            autoreset_mode=AutoresetMode.DISABLED,
        )

    def reset_options(self, starts: Sequence[int]) -> dict[str, Array]:
        """The published mapping."""
        return {"legacy_seed": np.array(starts)}

    def look(self, history: Sequence[Any], obs: str, keep: int) -> Observed:
        """Pictures are drawn here, and only those of the first `keep` rows, which the filling repeats."""
        observations = np.stack(history, axis=1)
        if obs != "image":
            return Observed(_part(observations, obs), {})
        pictures = np.stack([[render_state(state, size=SIZE) for state in states] for states in observations[:keep]])
        filled = np.minimum(np.arange(len(observations)), keep - 1)
        return Observed(observations[..., :2], {CAMERA: pictures[filled]})

    def keys(self, obs: str) -> tuple[str, ...]:
        """Beside pictures it sees where the agent is [px]."""
        return (CAMERA, "agent_pos") if obs == "image" else (obs,)

    def demonstrations(self) -> Path:
        """The project's own."""
        return shipped("data/pusht_expert.zarr")

    def make_episodes(
        self, episodes: int, seed: int, workers: int, noise: float | None = None
    ) -> Iterator[dict[str, Array]]:
        """By `immiscible_envs.expert`, which plans a few pushes ahead and carries them out in the simulation."""
        if noise is not None:
            raise ValueError(f"noise={noise}: the expert of task=pusht has disturbances of its own; leave it out")
        return expert.make_episodes(episodes, seed, workers)

    def teleoperate(self, save: Callable[[Mapping[str, Array]], object], episode: int, seed: int) -> None:
        """With the mouse."""
        from immiscible_envs.teleop import Session, run_session  # opens pygame

        run_session(Session(save, episode, seed))

    def observation(self, demos: Demonstrations, obs: str) -> Array:
        """Nine points of the block, then the agent: 20 numbers; the state: 5; the agent, also beside pictures: 2.

        `corners` are LeRobot's points of the block, its eight corners, then the agent: 18 numbers. `nothing` is a
        single 0: what a policy does that knows no more than how demonstrations go.
        """
        if obs == "keypoints":
            points = demos["keypoint"].reshape(len(demos), -1)  # (T, 18)
            return np.concatenate([points, demos["state"][:, :2]], axis=1).astype(np.float32)
        return _part(demos["state"], obs).astype(np.float32)

    def frames(self, demos: Demonstrations, obs: str, source: str = "stored") -> dict[str, torch.Tensor] | None:
        """The recorded frames, or what the camera sees of the recorded states."""
        if obs != "image":
            return None
        if source == "rendered":
            frames = np.empty((len(demos), SIZE, SIZE, 3), np.uint8)
            console = Console(stderr=True)
            for step in track(range(len(demos)), "drawing frames", console=console, disable=not sys.stderr.isatty()):
                frames[step] = render_state(demos["state"][step], size=SIZE)
            return {CAMERA: torch.from_numpy(frames)}
        if CAMERA not in demos.frames:
            raise ValueError(f"{demos.path}: data/{CAMERA} is missing; images=rendered draws it from the states")
        height, width = demos.frames[CAMERA].shape[1:3]
        if (height, width) != (SIZE, SIZE):
            raise ValueError(f"the frames are {height} x {width}, PushT shows {SIZE} x {SIZE}; use images=rendered")
        return {CAMERA: demos.frames[CAMERA].as_bytes()}

    def mirror(self, demos: Demonstrations) -> Demonstrations:
        """Append each episode's reflection about the goal's axis of symmetry, as `reflect` makes it."""
        return join(demos, reflect(demos))

    def problems(self, demos: Demonstrations) -> Iterator[str]:
        """Places outside the workspace, contacts below zero, keypoints far from the pose."""
        ends = demos.episode_ends
        for name, what in (("action", "an action"), ("state", "agent and block")):
            values = demos[name][:, :4]
            if np.abs(values).max() <= 2:  # normalised positions lie inside the workspace too, in its corner
                yield f"data/{name} spans {values.min():.3g}..{values.max():.3g}, which does not span pixels"
            outside = (values < 0) | (values > WORKSPACE)
            yield from checks.flagged(name, outside, values, ends, f"; {what} should lie in 0..{WORKSPACE:.0f}")
        if "n_contacts" in demos.arrays:
            counts = demos["n_contacts"]
            yield from checks.flagged("n_contacts", counts < 0, counts, ends, "; it counts contacts")
        distance = np.linalg.norm(demos["keypoint"] - keypoints(demos["state"][:, 2:5]), axis=-1)  # (T, 9)
        far = np.flatnonzero((distance > KEYPOINT_TOLERANCE).any(axis=1))
        if len(far):
            point = int(distance[far[0]].argmax())
            where = f"from where data/state puts it (up to {KEYPOINT_TOLERANCE:.0f} px are usual)"
            step = f"at {checks.place(int(far[0]), ends)}; {len(far)} such steps in all"
            yield f"data/keypoint[{point}] lies {distance[far[0], point]:.1f} px {where} {step}"

    def commanded(self, demos: Demonstrations) -> Array:
        """The agent's position."""
        return demos["state"][:, :2]

    def features(self, demos: Demonstrations) -> dict[str, Feature]:
        """Those of lerobot/pusht_keypoints: the agent, and the T's eight corners in the world frame."""
        corners = _part(demos["state"], "corners")[:, :-2]  # (T, 16)
        names = tuple(f"corner{i}_{axis}" for i in range(8) for axis in "xy")
        return {
            "observation.state": Feature(demos["state"][:, :2].astype(np.float32), ("agent_x", "agent_y")),
            CORNER_FEATURE: Feature(corners.astype(np.float32), names),
            "action": Feature(demos["action"].astype(np.float32), ("target_x", "target_y")),
        }

    def from_features(self, columns: Mapping[str, Array]) -> dict[str, Array]:
        """The block's pose by a fit to the T's corners, its keypoints from that pose; contacts are not recorded."""
        for name, width in (("observation.state", 2), (CORNER_FEATURE, 16), ("action", 2)):
            if name not in columns:
                cure = "lerobot/pusht_keypoints holds it; images are not read"
                raise StoreError(f"no {name}, so the positions of agent and block are unknown; {cure}")
            if columns[name].shape[1:] != (width,):
                raise StoreError(f"{name} has shape {columns[name].shape[1:]}; ({width},) can be converted")
        pose, error = fit_pose(columns[CORNER_FEATURE].astype(np.float64).reshape(-1, 8, 2))
        if (misfit := ~(error <= FIT_TOLERANCE)).any():  # NaN is one
            step = int(np.argmax(misfit))
            where = f"episode {columns['episode_index'][step]}, frame {columns['frame_index'][step]}"
            problem = f"is not the T's eight corners (off by {error[step]:.3g} px)"
            raise StoreError(f"{CORNER_FEATURE} of {where} {problem}")
        return {
            "state": np.concatenate([columns["observation.state"], pose], axis=1).astype(np.float32),
            "action": columns["action"].astype(np.float32),
            "keypoint": keypoints(pose).astype(np.float32),
        }

    def scenes(
        self, environment: VectorEnv[Any, Any, Any], observation: Any, info: Mapping[str, Array], obs: str
    ) -> Array:
        """States (N, 5)."""
        agent = observation[:, -2:] if obs == "keypoints" else observation[:, :2]
        return np.concatenate([agent, info["block_pose"]], axis=1)

    def recorded_scenes(self, demos: Demonstrations) -> Array:
        """States (T, 5)."""
        return demos["state"]

    def draw(self, scene: Array, size: int) -> NDArray[np.uint8]:
        """Seen from above."""
        return render_state(scene, size=size)


def _part(observations: Array, obs: str) -> Array:
    """What a policy sees of states (..., 5); keypoints, which the environment shows itself, stay as they are."""
    if obs == "nothing":
        return np.zeros_like(observations[..., :1])
    if obs == "corners":
        points = place(CORNERS, observations[..., 2:])  # (..., 8, 2)
        return np.concatenate([points.reshape(*points.shape[:-2], -1), observations[..., :2]], axis=-1)
    return observations if obs in ("keypoints", "state") else observations[..., :2]


def reflect(demos: Demonstrations) -> Demonstrations:
    """Reflect every episode about the goal's axis of symmetry; twice gives the originals, up to rounding.

    Agent, block, actions and images are reflected; keypoints, which do not lie symmetrically on the block, are
    those of the reflected pose. Other cameras are left out: what they would see is not known. The walls (5 to 506 px)
    are centred half a pixel beside that axis, so a push against a wall comes out one pixel off.
    """
    state = mirror_state(demos["state"])
    reflected = {"state": state, "action": mirror_point(demos["action"]), "keypoint": keypoints(state[:, 2:])}
    arrays = {key: reflected.get(key, values).astype(values.dtype) for key, values in demos.arrays.items()}
    seen = {name: replace(frames, mirrored=~frames.mirrored) for name, frames in demos.frames.items() if name == CAMERA}
    return replace(demos, arrays=arrays, frames=seen)
