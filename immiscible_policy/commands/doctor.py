"""`python -m immiscible_policy doctor`: what is wrong with an installation, a data set or a checkpoint, and the cure.

Every check is a generator of findings; a finding that is wrong has a cure. Legend: T steps in all, n of an episode.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from packaging.requirements import Requirement
from torch import Tensor

from immiscible_policy.cli import Option, parse
from immiscible_policy.demos.chunks import StoreError
from immiscible_policy.demos.demonstrations import Demonstrations
from immiscible_policy.demos.store import open_store
from immiscible_policy.demos.validate import problems
from immiscible_policy.demos.windows import Layout, window_index
from immiscible_policy.evaluation.agent import read_policy
from immiscible_policy.plugins.bridge import find_checkpoint
from immiscible_policy.policy import Policy, PolicySpec
from immiscible_policy.policy.normalizer import Normalizer
from immiscible_policy.provenance import hardware, versions
from immiscible_policy.recipes.robot_config import compose_config
from immiscible_policy.store.checkpoint import Checkpoint
from immiscible_policy.store.run import SETTINGS_OF_PLACE, run_of
from immiscible_policy.tasks import Task, find_task, first_observation, recorded_task, task_of_store

USAGE = """\
usage: python -m immiscible_policy doctor [data=STORE task=TASK] [checkpoint=PATH]

Checks versions and the GPU, a data set, and a checkpoint against its run and the data. Prints each finding, and a cure
for each problem; the exit code is 1 if there is one.
"""
OPTIONS = {
    "data": Option(Path, None, "store of demonstrations; by default the checkpoint's, or the embedded one"),
    "task": Option(str, None, "task of the data; by default the checkpoint's, or what the data looks like"),
    "checkpoint": Option(
        Path, None, "a run, a checkpoint, pretrained, Diffusion Policy's .ckpt, or LeRobot's directory"
    ),
}
DISTRIBUTION = "immiscible-policy"
SHIFTS = range(-3, 4)  # offsets of the actions [steps] that are tried
CLEARER = 0.5  # another offset is believed if its error is below this share of the error as stored
REPEATED = 8  # so many equal steps at the end of most episodes are padding
BEYOND, WITHIN = 1.2, 0.5  # normalised data should reach farther than the second and not beyond the first
CURES = {
    r" is (nan|inf|-inf) ": "repair the value, or leave the episode out: demos.select keeps the others",
    r"pixels of 0\.\.1;": "multiply the pixels by 255",
    r"pixels should be 0\.\.255": "store images as 0..255, as bytes or floats",
    r"is missing|truncated|cannot be decoded": "fetch or write the store again",
    r"episode_ends": "write meta/episode_ends as the running sum of the episodes' lengths",
    r"differ in length": "cut all arrays to the same steps",
}
"""What to do about what `demos validate` says, by a pattern in it; a task adds its own."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: the result, and what to do about it if it is wrong, else nothing."""

    subject: str
    result: str
    cure: str = ""


def main(words: list[str]) -> int:
    """Run the command: 0 if nothing is wrong, else 1."""
    options = parse(words, OPTIONS, USAGE)
    findings = list(examine(options["data"], options["checkpoint"], options["task"]))
    for finding in findings:
        print(f"{finding.subject:<10}  {'WRONG' if finding.cure else 'ok':<5}  {finding.result}")
        if finding.cure:
            print(f"{'':<10}  cure:  {finding.cure}")
    wrong = sum(bool(finding.cure) for finding in findings)
    print(f"{wrong} of {len(findings)} findings need a cure" if wrong else "nothing is wrong")
    return int(bool(wrong))


def examine(data: Path | None, checkpoint: Path | None, named: str | None = None) -> Iterator[Finding]:
    """Look at the installation, a checkpoint of any project, and a store; None: what the checkpoint was trained on."""
    yield from package_findings()
    yield from gpu_findings()
    opened = None
    if checkpoint is not None:
        findings, opened = open_policy(checkpoint)
        yield from findings
    config = opened[0].metadata.get("config") if opened else None
    recorded = config and config.get("data")
    if named or config or data is None:
        task = find_task(named) if named else recorded_task(config or {})
    else:
        task = task_of_store(data)
    path = data or (Path(recorded) if recorded else task.demonstrations())
    if path is None:
        yield Finding("data", f"not examined: task={task.name} has no demonstrations of its own; data= names them")
        return
    if data is None and recorded and not path.exists():
        yield Finding("data", f"{path}, which the checkpoint was trained on, is not here; data= names another place")
        return
    yield from store_findings(path, task)
    if opened is None:
        return
    if data is None and config is None:
        yield Finding("normaliser", "not compared: the checkpoint does not say what it was trained on; data= names it")
        return
    with suppress(StoreError):  # which `store_findings` has reported
        yield from normaliser_findings(open_store(path, task.columns), task, *opened[1:], (config or {}).get("action"))


def package_findings() -> Iterator[Finding]:
    """Whether what is installed is what the commands need: the requirements of the project and of its extra `train`."""
    yield Finding("versions", ", ".join(f"{name} {number}" for name, number in versions().items() if number))
    try:
        needed = [Requirement(line) for line in requires(DISTRIBUTION) or []]
    except PackageNotFoundError:
        yield Finding("versions", f"{DISTRIBUTION} is not installed", "pip install -e . in the checkout")
        return
    for requirement in needed:
        name, fitting = requirement.name, requirement.specifier
        marker = requirement.marker
        if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in ("", "train", "envs")):
            continue
        try:
            installed = version(name)
            fault = "" if fitting.contains(installed, prereleases=True) else f"{installed} does not fit {fitting}"
        except PackageNotFoundError:
            fault = "is not installed"
        if fault:
            yield Finding("versions", f"{name} {fault}", f"pip install '{name}{fitting}'")


def gpu_findings() -> Iterator[Finding]:
    """Whether a GPU is there and computes."""
    if torch.cuda.is_available():
        try:
            torch.ones(2, device="cuda").sum().item()
        except RuntimeError as error:
            cure = "install a build of PyTorch for this GPU and driver; device=cpu trains meanwhile"
            yield Finding("GPU", f"{hardware()['gpu']} does not compute ({str(error).splitlines()[0]})", cure)
        else:
            gigabytes = torch.cuda.get_device_properties(0).total_memory / 2**30
            yield Finding("GPU", f"{hardware()['gpu']}, {gigabytes:.0f} GiB, CUDA {torch.version.cuda}")
    elif Path("/dev/nvidia0").exists():
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built for the CPU alone"
        cure = "install a build of PyTorch for CUDA that the driver supports (nvidia-smi names it)"
        yield Finding("GPU", f"there is one, but PyTorch {torch.__version__} {built} and does not see it", cure)
    else:
        yield Finding("GPU", f"none; training runs on {hardware()['cores']} CPU cores")


def store_findings(path: Path, task: Task) -> Iterator[Finding]:
    """What is wrong with a store: its values, what was padded, and whether its actions are those of their steps."""
    for problem in problems(path, task.columns, task.problems):
        cures = (cure for pattern, cure in {**task.cures, **CURES}.items() if re.search(pattern, problem))
        rewrite = "write the store anew with immiscible_policy.demos.write_store, which checks it"
        yield Finding("data", problem, next(cures, rewrite))
    try:
        demos = open_store(path, task.columns)
    except StoreError:
        return
    lengths = demos.lengths
    sizes = f"{demos.n_episodes} episodes of {lengths.min()} to {lengths.max()} steps"
    if task.action not in demos.arrays:
        arrays = ", ".join(demos.arrays)
        yield Finding("data", f"{path}: {sizes}, {arrays}; actions not examined: no array is called {task.action}")
        return
    action = demos[task.action].reshape(len(demos), -1)
    yield Finding("data", f"{path}: {sizes}, actions {action.min():.4g}..{action.max():.4g}")
    numbers = task.observation(demos, first_observation(task, demos))  # (T, Do)
    tails = np.array([repeated_steps(numbers[steps], action[steps]) for steps in demos.episodes])
    padded = int((tails >= REPEATED).sum())
    if 2 * padded > demos.n_episodes:
        text = f"{padded} of {demos.n_episodes} episodes end in {REPEATED} or more equal steps (up to {tails.max()})"
        cure = "cut each episode after its last change and write meta/episode_ends anew; windows are padded when cut"
        yield Finding("padding", text, cure)
    if short := int((Layout.of(compose_config([])).n_windows(lengths) == 0).sum()):
        text = f"{short} of {demos.n_episodes} episodes are shorter than a window and are never trained on"
        yield Finding("padding", text, "record longer episodes, or train with a smaller horizon=")
    position = task.commanded(demos)
    if position is not None:
        yield from offset_findings(demos, position, action)


def repeated_steps(numbers: np.ndarray, action: np.ndarray) -> int:
    """How many steps at the end of an episode, (n, Do) and (n, Da), are equal to the last one, which does not count."""
    rows = np.concatenate([numbers, action], axis=1)
    changes = np.flatnonzero((rows != rows[-1]).any(axis=1))
    return len(rows) - 1 - (int(changes[-1]) + 1 if len(changes) else 0)


def offset_findings(demos: Demonstrations, position: np.ndarray, action: np.ndarray) -> Iterator[Finding]:
    """Whether action[t] is what moves the agent from t to t + 1; the arguments are those of `offset_errors`."""
    errors = offset_errors(demos, position, action)
    if not errors:
        yield Finding("offset", "the episodes are too short to tell whether actions and observations fit together")
        return
    best = min(errors, key=lambda shift: errors[shift])
    by_offset = ", ".join(f"{shift:+d}: {error:.3g}" for shift, error in errors.items())
    law = f"moves the agent from t to t + 1 (error by offset {by_offset})"
    if best == 0 or errors[best] >= CLEARER * errors[0]:
        yield Finding("offset", f"action[t] {law}")
        return
    steps, late = f"{abs(best)} step{'s' * (abs(best) > 1)}", "early" if best < 0 else "late"
    cure = f"store action[t{best:+d}] as action[t] within each episode and drop the steps that are left without one"
    yield Finding("offset", f"the actions come {steps} too {late}: action[t{best:+d}] {law}", cure)


def offset_errors(demos: Demonstrations, position: np.ndarray, action: np.ndarray) -> dict[int, float]:
    """How badly the action at each offset explains where the agent goes, root mean square in the position's unit.

    A position controller moves the agent by a linear law: p[t+1] = c . (p[t], p[t-1], a[t], a[t-1], 1). The law is
    fitted by least squares with a[t + s], a[t - 1 + s] for each offset s, on the same steps; at the true offset it
    fits best, whatever the controller's gains. Position and action are (T, D); empty if no episode is long enough.
    """
    reach = max(SHIFTS) + 1
    t = np.concatenate([np.arange(steps.start + reach, steps.stop - reach) for steps in demos.episodes])
    if not len(t):
        return {}
    p, a = position.astype(np.float64), action.astype(np.float64)
    errors, target = {}, p[t + 1].ravel()  # (N,)
    for shift in SHIFTS:
        columns = (p[t], p[t - 1], a[t + shift], a[t + shift - 1], np.ones_like(p[t]))
        table = np.stack([column.ravel() for column in columns], axis=1)  # (N, 5)
        fitted = table @ np.linalg.lstsq(table, target, rcond=None)[0]
        errors[shift] = float(np.sqrt(np.mean((target - fitted) ** 2)))
    return errors


def open_policy(path: Path) -> tuple[list[Finding], tuple[Checkpoint, Policy, PolicySpec] | None]:
    """Open a checkpoint, None if it cannot be, and look at it."""
    try:
        checkpoint = find_checkpoint(path)
        policy, spec = read_policy(checkpoint)
    except ValueError as error:
        action = "do not use it" if "refused" in str(error) else "use another checkpoint"
        return [Finding("checkpoint", str(error), action)], None
    sizes = f"step {checkpoint.step}, obs={spec.obs}, horizon={spec.horizon}, down_dims={list(spec.down_dims)}"
    findings = [Finding("checkpoint", f"{path}: {checkpoint.metadata.get('source', 'ours')}, {sizes}")]
    bad = [name for name, value in policy.state_dict().items() if not torch.isfinite(value).all()]
    if bad:
        text = f"{len(bad)} weights are NaN or infinity, {bad[0]} first"
        action = "take an earlier checkpoint; train with precision=fp32, a lower lr= or clip_grad_norm=1"
        findings.append(Finding("checkpoint", text, action))
    return [*findings, *config_findings(checkpoint, spec)], (checkpoint, policy, spec)


def config_findings(checkpoint: Checkpoint, spec: PolicySpec) -> Iterator[Finding]:
    """Whether the policy is what its own record, and the run directory around it, say."""
    recorded: Mapping[str, Any] = checkpoint.config
    yield from _differing("its metadata", recorded, vars(spec))
    seed = run_of(checkpoint.path)
    if seed is None:
        return
    config = seed.run.config
    yield from _differing(f"the run {seed.run.path}", config, vars(spec) | dict(recorded))
    steps = config.get("steps")
    if isinstance(steps, int) and checkpoint.step > steps:
        text = f"step {checkpoint.step} lies beyond steps={steps} of the run {seed.run.path}"
        yield Finding("checkpoint", text, "the checkpoint is of another run; put it back, or evaluate it by itself")


def _differing(place: str, given: Mapping[str, Any], true: Mapping[str, Any]) -> Iterator[Finding]:
    """Values that a place gives otherwise than they are; where it runs, and how long, is not part of what it is."""
    for key in (given.keys() & true.keys()) - SETTINGS_OF_PLACE - {"threads", "device", "steps"}:
        one, other = (tuple(value) if isinstance(value, list) else value for value in (given[key], true[key]))
        if one != other:
            text = f"{place} says {key}={given[key]}, the checkpoint has {true[key]}"
            yield Finding("checkpoint", text, "restore the file; the checkpoint and its weights are what decides")


def normaliser_findings(
    demos: Demonstrations, task: Task, policy: Policy, spec: PolicySpec, action_key: str | None = None
) -> Iterator[Finding]:
    """Whether the data, normalised as the policy does it, lies in -1..1 and fills it, as far as windows see it."""
    layout = Layout.of(spec)
    if not layout.n_windows(demos.lengths).any():
        yield Finding("normaliser", "not compared: no episode is as long as a window of the policy")
        return
    seen = np.unique(window_index(demos.episode_ends, layout).step[:, : spec.obs_steps])  # not the ends of episodes
    table = torch.from_numpy(task.observation(demos, spec.obs)[seen])
    action = torch.from_numpy(demos[action_key or task.action].reshape(len(demos), -1).astype(np.float32))
    parts = (("observation", policy.observer.normalizer, table), ("action", policy.action, action))
    misfits = [finding for part in parts for finding in misfit(*part)]
    yield from misfits or [Finding("normaliser", f"fits {demos.path}")]


def misfit(name: str, normaliser: Normalizer, values: Tensor) -> Iterator[Finding]:
    """Whether values (N, D) are of another size, reach beyond what the policy knows, or stay well within it."""
    if len(normaliser.scale) != values.shape[1]:
        text = f"the policy's {name} has {len(normaliser.scale)} numbers, the data's {values.shape[1]}"
        yield Finding("normaliser", text, "use a checkpoint that was trained on data of this kind")
        return
    reach = normaliser.normalize(values).abs().amax(dim=0)  # (D,)
    worst, least = int(reach.argmax()), int(reach.argmin())
    action = "evaluate with the data that it was trained on, or train anew; units or workspace differ"
    if not reach[worst] <= BEYOND:
        text = f"{name}[{worst}] of the data reaches {reach[worst]:.3g} where the policy knows -1..1"
    elif reach[least] < WITHIN and values[:, least].amax() > values[:, least].amin():
        text = f"{name}[{least}] of the data stays within +-{reach[least]:.2g} of the policy's -1..1"
    else:
        return
    yield Finding("normaliser", text, action)
