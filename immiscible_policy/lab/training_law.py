"""Solvers whose noise follows the law that training saw, for policies trained with selected noise.

Training mixes an action chunk x with noise that a selector S chose for it; sampling starts from N(0, I), whatever the
observation. Two ways to close that gap without training again:

    drafted    a first DDIM solution from e ~ N(0, I) gives a draft x^; a second one starts from S(x^). Twice the calls.
    renoised   `solver=renoise`, every predicted chunk noised anew with S(x_0) instead of plain noise. With S plain this
               is `renoise`, the control that shows what renoising alone does.

Every row selects with its own source of randomness, so the selector has to choose within one sample, as KNN does.

Shape legend: B rows, T horizon, A action dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any, cast

import torch
from torch import Tensor

from immiscible_policy.noise import Selector
from immiscible_policy.policy import Policy
from immiscible_policy.solver import Solver, noise_rows, solve

LAWS = {"drafted": "ddim", "renoised": "renoise"}
"""Each way, and the solver that it is built on."""


class TrainingLawPolicy:
    """Samples like a policy, its noise chosen as in training.

    Args:
        policy: The policy.
        select: The selector of its training, at full strength.
        law: One of `LAWS`; its solver is what samples.
    """

    def __init__(self, policy: Policy, select: Selector, law: str) -> None:
        self.policy, self.path, self.action, self.select, self.law = policy, policy.path, policy.action, select, law

    @torch.no_grad()
    def sample(self, observation: Any, solver: Solver, generators: Sequence[torch.Generator]) -> Tensor:
        """As `Policy.sample`."""
        policy = self.policy
        condition = policy.encode(observation)
        start = noise_rows(generators, 1, (policy.horizon, len(policy.action.scale)))[0]

        def selected(clean: Tensor) -> Tensor:
            return torch.cat([self.select(x, generator=g) for x, g in zip(clean.split(1), generators, strict=True)])

        if self.law == "drafted":
            draft = policy.solve(condition, solver, start[None])
            chunk = policy.solve(condition, solver, selected(draft)[None])
        else:
            chunk = self._renoised(condition, solver, start, selected)
        return policy.action.unnormalize(chunk / policy.data_scale)

    def _renoised(
        self, condition: Tensor, solver: Solver, start: Tensor, selected: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Scaled chunks (B, T, A); the noise that the recurrence adds is chosen for what the last call predicted."""
        plan, predicted = solver.plan(self.path), cast(list[Tensor], [])

        def calls(i: int, x: Tensor) -> Tensor:
            return self.policy.network(x, torch.full((len(x),), plan[i].t), condition)

        noise = ChosenNoise(start, lambda: selected(predicted[-1]))
        return solve(calls, self.path, plan, cast(Tensor, noise), limit=self.policy.data_scale, record=predicted)


class ChosenNoise:
    """The noise of a solution, row 0 its start; the others are chosen when the recurrence asks for them.

    Args:
        start: Start noise (B, T, A).
        choose: The next noise to add (B, T, A).
    """

    def __init__(self, start: Tensor, choose: Callable[[], Tensor]) -> None:
        self.start, self.choose = start, choose

    def __getitem__(self, rows: int | slice) -> Tensor | Iterator[Tensor]:
        """Row 0, or all others."""
        return self.start if isinstance(rows, int) else (self.choose() for _ in count())
