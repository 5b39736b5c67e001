"""The options of `train_policy.py`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from immiscible_policy.cli import CommandError, expanded
from immiscible_policy.noise import CONDITIONAL_MEANS
from immiscible_policy.path import ddpm, flow
from immiscible_policy.path.flow import TIMES
from immiscible_policy.recipes.options import NOISE, SYNONYMS, DiffusionConfig, check_noise
from immiscible_policy.tasks.task import BUILT_IN, FIRST_START, GROUP, find_task
from immiscible_policy.training.options import Part, Schema, choice, number

PREDICTIONS = {"diffusion": ddpm.PREDICTIONS, "flow": flow.PREDICTIONS}
"""What the network of a method may predict, the default first; the others predict the clean sample."""
CAMERAS = ("images", "resize", "crop", "encoder_width", "shared_encoder")
STARTS = ("episodes", "starts")
SELECTION = {"exclude": "none", "select_for": "action", "select_at": "all"}
"""Options that say what noise is selected for, and their defaults."""
SAMPLING = ("solver", "sampling_steps", "spacing")
SAMPLINGS = {
    "diffusion": ("ddim", 10, "trailing"),
    "flow": ("euler", 5, "shifted"),
    "student": ("euler", 3, "trailing"),  # of a teacher
}
"""How a method samples by default; the others predict once or twice, whatever the number."""


@dataclass(kw_only=True)
class RobotConfig(DiffusionConfig):
    """Every option of `train_policy.py`, after composition; configs/robot.yaml says what each means."""

    task: dict[str, Any]
    obs: str | None
    action: str | None
    normalize: str = choice("all", "train")
    exclude: str = choice("none", "padding", "unexecuted")
    select_for: str = choice("action", "residual")
    residual_mean: str = choice(*CONDITIONAL_MEANS)
    select_at: str
    mirror: bool
    mirror_batches: bool
    validation: float | None = number("[0, 1)")
    train_episodes: int | None = number("[1, 1e9]")
    horizon: int = number("[1, 4096]")
    obs_steps: int = number("[1, 4096]")
    action_steps: int = number("[1, 4096]")
    method: str = choice("diffusion", "flow", "regression", "mip")
    diffusion_steps: int = number("[1, 1e5]")
    times: str | None = choice(*TIMES)
    min_snr: float | None = number("(0, 1e6]")
    teacher: str | None
    teacher_calls: int = number("[1, 1e5]")
    images: str = choice("stored", "rendered")
    resize: list[int] | None = number("[1, 4096]")
    crop: int = number("[1, 4096]")
    encoder_width: int = number("[1, 4096]")
    shared_encoder: bool
    down_dims: list[int] = number("[1, 65536]")
    step_embed_dim: int = number("[1, 65536]")
    kernel_size: int = number("[1, 1023]")
    groups: int = number("[1, 65536]")
    kernels: str = choice("fused", "plain")
    sampling_steps: int = number("[1, 1e5]")
    episodes: int = number("[1, 1e5]")
    starts: str

    @property
    def is_blind(self) -> bool:
        """Whether no camera is seen; arrays of a store may be cameras."""
        return not find_task(**self.task).may_see_pictures(self.obs or "")

    @property
    def unused(self) -> set[str]:
        """Also what cameras, starts, selection, a teacher and so on would need, where there are none."""
        idle = {
            CAMERAS: self.is_blind,
            STARTS: not find_task(**self.task).has_environment,
            ("select_over", *SELECTION): self.noise["name"] == "vanilla",
            ("residual_mean",): self.select_for != "residual",
            ("teacher_calls",): not self.teacher,
            ("mirror_batches",): not self.mirror,
            ("diffusion_steps",): self.method == "flow",
            ("sampling_steps", "spacing", "eta"): self.method in ("regression", "mip"),
        }
        return super().unused.union(*(keys for keys, holds in idle.items() if holds))


def fill(options: dict[str, Any]) -> None:
    """Choose what task and method decide, such as the first observation, the prediction and the solver."""
    task = find_task(**options["task"])
    if options["obs"] is None and task.observations:
        options["obs"] = task.observations[0]
    if options["action"] is None:
        options["action"] = task.action
    if options["validation"] is None:
        options["validation"] = task.validation
    if options["prediction"] is None:
        options["prediction"] = PREDICTIONS.get(options["method"], ("sample",))[0]
    if options["teacher"] is not None:
        options["teacher"] = os.path.realpath(expanded(options["teacher"]))
    if options["times"] is None:
        options["times"] = "calls" if options["teacher"] else "uniform"
    method = "student" if options["teacher"] else options["method"]
    for key, value in zip(SAMPLING, SAMPLINGS.get(method, ("direct", 10, "trailing")), strict=True):
        if options[key] is None:
            options[key] = value


def check(config: RobotConfig, given: Mapping[str, str]) -> None:
    """Refuse options of images where none are seen, of one method in another, and of a selection where none is made."""
    task = find_task(**config.task)
    if not task.has_environment:
        check_held_out(config, given)
    if config.mirror_batches and not (config.mirror and config.batch_size % 2 == 0):
        raise CommandError("mirror_batches=true: needs mirror=true and an even batch_size=")
    for key in CAMERAS:
        if key in given and config.is_blind:
            raise CommandError(f"{key}={given[key]}: obs={config.obs} sees no images; use obs=image")
    if config.mirror_batches and config.select_over > 1:
        raise CommandError(f"select_over={config.select_over}: mirror_batches=true needs select_over=1")
    check_noise(config)
    if config.resize is not None and len(config.resize) != 2:
        raise CommandError(f"resize={config.resize}: give height and width, such as resize=[96,128]")
    name, method = config.noise["name"], config.method
    if method in ("regression", "mip") and name != "vanilla":
        why = f"method={method} does not diffuse, so no noise can be chosen; use noise=vanilla"
        raise CommandError(f"noise={name}: {why}")
    learned = PREDICTIONS.get(method, ("sample",))
    if config.prediction not in learned:
        raise CommandError(f"prediction={config.prediction}: method={method} predicts {' or '.join(learned)}")
    for key, owner in {"times": "flow", "teacher": "flow", "min_snr": "diffusion"}.items():
        if key in given and method != owner:
            raise CommandError(f"{key}={given[key]}: method={method} has no {key}; use method={owner}")
    if config.times == "calls" and config.solver == "heun":
        why = "learns the times of solver=euler; heun calls the network at others"
        raise CommandError(f"solver=heun: {'teacher=' if config.teacher else 'times=calls'} {why}; leave solver= out")
    if "episodes" in given and config.starts not in FIRST_START:
        raise CommandError(f"episodes={config.episodes}: starts={config.starts} names every start; leave episodes= out")
    if method != "diffusion" and config.select_at != "all":
        why = f"method={method} has no diffusion steps; add method=diffusion, or leave select_at= out"
        raise CommandError(f"select_at={config.select_at}: {why}")
    if config.teacher and name != "vanilla":
        raise CommandError(f"noise={name}: teacher= makes the actions of the noise, so none is chosen for them")
    if "teacher_calls" in given and not config.teacher:
        raise CommandError(f"teacher_calls={config.teacher_calls}: there is no teacher; add teacher=RUN")
    if "residual_mean" in given and config.select_for != "residual":
        raise CommandError(f"residual_mean={config.residual_mean}: nothing is predicted; add select_for=residual")
    for key, plain in SELECTION.items():
        value = getattr(config, key)
        if name == "vanilla" and value != plain:
            raise CommandError(f"{key}={value}: noise=vanilla selects no noise for a sample; leave {key}= out")


def check_held_out(config: RobotConfig, given: Mapping[str, str]) -> None:
    """Refuse starts where there is no environment, and to hold nothing out where that is all that is scored."""
    scored = f"task={config.task['name']} is scored on the episodes that validation= holds out"
    for key in STARTS:
        if key in given:
            raise CommandError(f"{key}={given[key]}: {scored}; leave {key}= out")
    if not config.validation:
        raise CommandError(
            f"validation={given.get('validation', config.validation)}: {scored}; give a share such as 0.1"
        )


SCHEMA = Schema(
    base="robot",
    config=RobotConfig,
    groups={"scale": "robot_scale", "experiment": "experiment"},
    parts=(NOISE, Part("task", GROUP, BUILT_IN)),
    title=("task", "obs", "noise"),
    fill=fill,
    check=check,
    presets={"obs_scale": ("obs", "scale"), "method_scale": ("method", "scale")},
    synonyms=SYNONYMS,
)
compose_config = SCHEMA.compose
"""The options that command-line words ask for."""
