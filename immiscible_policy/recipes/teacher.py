"""A trained policy teaches another one to make its actions with fewer network calls: rectified flow.

The teacher's solver carries noise e, with an observation o, to a chunk x(e, o). The student begins with the teacher's
weights and learns the straight line between the two (Liu et al., 2023, algorithm 1). These pairs keep the law of the
noise N(0, I) given the observation, so sampling starts where training did; and as x follows from e and o, one call can
reach one of several behaviours where the mean of all would lie between them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from immiscible_policy.cli import CommandError
from immiscible_policy.evaluation.agent import read_spec
from immiscible_policy.policy import Policy
from immiscible_policy.policy.build import PolicySpec
from immiscible_policy.solver import Solver
from immiscible_policy.store.checkpoint import Checkpoint
from immiscible_policy.store.run import RunDirectory, SeedDirectory

Teach = Callable[[Any, Tensor], Tensor]
"""(observation, noise (B, T, A)) -> the teacher's clean scaled actions (B, T, A)."""


def find_teacher(run: RunDirectory, student: SeedDirectory, spec: PolicySpec) -> Checkpoint:
    """The checkpoint that teaches a seed: the last one of the same seed of a run.

    Raises:
        ValueError: If there is none yet, if its policy and the student's differ in more than `kernels`, or if its
            weights are others than those that the student's training began with.
    """
    own, seed = run.seed(student.number), student.number
    checkpoint = own.newest() if run.exists else None
    if checkpoint is None or not own.is_finished(run.config["steps"]):
        raise CommandError(f"teacher={run.path}: it has no finished seed {seed}; train it first, or name another run")
    if student.run.teachers.get(str(seed), weights_hash(checkpoint)) != weights_hash(checkpoint):
        cure = "restore it, or train anew with another out="
        raise CommandError(f"teacher={run.path}: its seed {seed} has changed since training began; {cure}")
    theirs = asdict(replace(read_spec(checkpoint), kernels=spec.kernels))
    for key, value in asdict(spec).items():
        if theirs[key] != value:
            raise CommandError(f"{key}={value} differs from the teacher's, {theirs[key]}; train with the same")
    return checkpoint


def weights_hash(teacher: Checkpoint) -> str:
    """Hash of the weights that teach."""
    return str(teacher.metadata["sha256"].get("ema.safetensors"))


def make_teach(teacher: Policy, calls: int, precision: str) -> Teach:
    """What a teacher makes of noise with so many calls of `euler`; precision `bf16` multiplies in bfloat16."""
    plan = Solver("euler", calls).plan(teacher.path)

    @torch.no_grad()
    def teach(observation: Any, noise: Tensor) -> Tensor:
        device = noise.device.type  # a captured graph would read the cache's tensors after they are freed
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16", cache_enabled=device == "cpu"):
            return teacher.solve(teacher.encode(observation), plan, noise.unsqueeze(0).clone())

    return teach
