"""The robot policy's objective: windows of demonstrations, noise through a selector."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from immiscible_policy.demos.windows import Windows
from immiscible_policy.network.crop import random_crop
from immiscible_policy.noise import ForResidual, Selector
from immiscible_policy.policy import Pictured, Policy
from immiscible_policy.policy.policy import NoisedBatch
from immiscible_policy.randomness import torch_generator
from immiscible_policy.recipes.teacher import Teach
from immiscible_policy.training.batches import ShuffledOrder, Together, cut


@dataclass(eq=False)
class RobotObjective:
    """Denoising loss on batches of windows.

    Batch, noise and diffusion steps are pure functions of (seed, step). They are drawn for the whole batch before it
    is cut into micro-batches, so accumulation changes memory, not the result. With `select_over` above 1 they are drawn
    for so many successive batches at once, so that an assignment pairs within all of them.

    Attributes:
        windows: All training windows, on the policy's device; a batch is one gather.
        select: Chooses the noise of a batch.
        select_over: Batches whose noise is chosen together.
        compared: Which actions of each window enter the selection's distance (N, T), or None for all.
        levels: Diffusion steps at which the chosen noise is used, plain noise at the others; None: at all.
        expected: What observations make expected of the clean actions (N, T, A); noise is selected for what that leaves
            open, or for the whole actions with None.
        crop: Side of the squares that are cut out of camera frames at random [px], or None to leave them whole:
            the policy sees their middle then, as in evaluation.
        mirrored: The second half of the windows are the mirror images of the first, and so in every batch.
        teach: What makes the clean actions of the noise, as in `Policy.noised`, or None for those demonstrated.
    """

    policy: Policy
    windows: Windows
    select: Selector
    _: KW_ONLY
    batch_size: int
    accumulate: int
    seed: int
    select_over: int = 1
    compared: Tensor | None = None
    levels: range | None = None
    expected: Tensor | None = None
    crop: int | None = None
    mirrored: bool = False
    teach: Teach | None = None

    def __post_init__(self) -> None:
        device, size = self.windows.action.device, self.select_over * self.batch_size
        self.order = ShuffledOrder(len(self.windows), size, self.seed, device, halves=self.mirrored)
        self.together = Together(self._noised, self.select_over)

    def batches(self, step: int) -> list[Any]:
        """The noised micro-batches of a training step."""
        return cut(self.together.batch(step), self.accumulate)

    def _noised(self, number: int) -> NoisedBatch:
        """All batches whose noise is chosen together, noised."""
        rows = self.order.rows(number)
        batch = self.windows[rows]
        select = self.select
        if self.expected is not None:
            expected = self.expected[rows]
            select = ForResidual(self.select, lambda _: expected)
        return self.policy.noised(
            observed(batch, self.crop, torch_generator(batch.obs.device, "crop", self.seed, number)),
            batch.action,
            select,
            step=number * self.select_over,
            generator=torch_generator(self.windows.action.device, "noise", self.seed, number),
            mask=None if self.compared is None else self.compared[rows].unsqueeze(-1),  # (B, T, 1)
            levels=self.levels,
            teach=self.teach,
        )

    def loss(self, batch: Any) -> Tensor:
        """Mean loss of a micro-batch."""
        return self.policy.loss(batch)


def observed(windows: Windows, crop: int | None, generator: torch.Generator) -> Any:
    """What a policy sees in windows: numbers (B, O, Do), with camera frames, cut out at random, where there are any."""
    if windows.footage is None:
        return windows.obs
    seen = windows.footage.step
    cameras = windows.footage.frames.values()
    views = [frames[seen] if crop is None else random_crop(frames, seen, crop, generator) for frames in cameras]
    return Pictured(windows.obs, torch.stack(views, dim=2))


def conditions(policy: Policy, windows: Windows, crop: int | None, generator: torch.Generator) -> Tensor:
    """What selection compares of windows (N, C), a thousand at a time."""
    rows = torch.arange(len(windows), device=windows.action.device).split(1000)
    return torch.cat([policy.condition(observed(windows[part], crop, generator)) for part in rows])
