"""Denoising as one unit: DDPM, DDIM, DPM-Solver++ and renoising are one recurrence with different numbers.

With a = alpha-bar of the step t, a' that of the step after it (1 after the last), r the clipping range:

    x_0  = clip((x_t - sqrt(1 - a) eps(x_t, t)) / sqrt(a), -r, r)
    x_t' = keep x_t + clean x_0 + predicted eps + before x_0' + fresh xi

where x_0' is the x_0 of the step before and xi ~ N(0, I).

Of a chain of C steps, S visit these, backwards: all but DPM-Solver++ 0, d, 2d, ... with d = C / S rounded down, as
published ("leading" spacing in diffusers; for C = 100 they start at 90 with S = 10, and at 50 with S = 2); DPM-Solver++
C - 1, C - 1 - C / S, ..., rounded ("trailing"), so that it starts where the chain ends however few its steps are.

`denoise` runs the recurrence as a plain function of tensors, which a GPU replays as one captured graph (`Replay`).
`denoise_by_diffusers` is the same through the schedulers of diffusers: slower, and what it has to agree with.

Shape legend: B rows, S denoising steps, T horizon, A action dimensions, G condition numbers, N draws of noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from immiscible_policy.capture import capture
from immiscible_policy.network.unet import ConditionalUnet1d

SAMPLERS = ("ddim", "ddpm", "dpmpp", "renoise")
ENGINES = ("fast", "eager")


@dataclass(frozen=True)
class Sampler:
    """How to denoise.

    Attributes:
        name: `ddpm` (Ho et al., 2020), `ddim` without noise of its own (Song et al., 2021), `dpmpp`:
            DPM-Solver++ 2M (Lu et al., 2022), DDIM with a second-order correction from the step before, or `renoise`:
            the other end of DDIM's family, every predicted chunk noised anew to the next step's level. It comes
            nearer to the mean of what fits the observation: samples spread less than the data do.
        steps: Denoising steps, at most as many as the noising chain has.
        engine: `fast` runs them as one unit, `eager` step by step through diffusers; the same up to rounding.

    Raises:
        ValueError: If the name or the engine is unknown or steps < 1.
    """

    name: Literal["ddim", "ddpm", "dpmpp", "renoise"] = "ddim"
    steps: int = 10
    engine: Literal["fast", "eager"] = "fast"

    def __post_init__(self) -> None:
        if self.name not in SAMPLERS:
            raise ValueError(f"sampler={self.name}: known samplers are {', '.join(SAMPLERS)}")
        if self.steps < 1:
            raise ValueError(f"sampling_steps={self.steps}: needs 1 or more")
        if self.engine not in ENGINES:
            raise ValueError(f"engine={self.engine}: known engines are {', '.join(ENGINES)}")

    def timesteps(self, chain: int) -> list[int]:
        """The diffusion steps that it visits, the noisiest first.

        Args:
            chain: Length of the noising chain.

        Raises:
            ValueError: If the sampler has more steps than the chain.
        """
        if self.steps > chain:
            raise ValueError(f"sampling_steps={self.steps}: the policy was trained with {chain} diffusion steps")
        if self.name == "dpmpp":
            return [round(chain - i * chain / self.steps) - 1 for i in range(self.steps)]
        return [i * (chain // self.steps) for i in reversed(range(self.steps))]


class Step(NamedTuple):
    """The numbers of one denoising step, as named in the recurrence of this module.

    Attributes:
        alpha: sqrt(a), what is left of the clean sample in x_t.
        sigma: sqrt(1 - a), standard deviation of the noise in x_t.
        keep: Factor on x_t.
        clean: Factor on x_0.
        predicted: Factor on the predicted noise.
        before: Factor on the x_0 of the step before.
        fresh: Standard deviation of the noise that is added.
    """

    alpha: float
    sigma: float
    keep: float = 0.0
    clean: float = 0.0
    predicted: float = 0.0
    before: float = 0.0
    fresh: float = 0.0


def denoising_steps(sampler: Sampler, alphas_cumprod: Tensor) -> list[Step]:
    """The numbers of a sampler's steps, the noisiest first.

    Args:
        sampler: Scheme and number of steps.
        alphas_cumprod: alpha-bar of every step of the noising chain.

    Raises:
        ValueError: If the sampler has more steps than the chain.
    """
    a = [float(alphas_cumprod[t]) for t in sampler.timesteps(len(alphas_cumprod))] + [1.0]
    if sampler.name == "dpmpp":
        return [_dpmpp(a[max(i - 1, 0)], a[i], a[i + 1]) for i in range(sampler.steps)]
    step = {"ddim": _ddim, "ddpm": _ddpm, "renoise": _renoise}[sampler.name]
    return [step(*pair) for pair in zip(a[:-1], a[1:], strict=True)]


def _ddim(a: float, after: float) -> Step:
    """Song et al. (2021), equation 12 with sigma = 0."""
    return Step(math.sqrt(a), math.sqrt(1 - a), clean=math.sqrt(after), predicted=math.sqrt(1 - after))


def _ddpm(a: float, after: float) -> Step:
    """Ho et al. (2020), equations 6 and 7, for a chain of the visited steps alone; the smaller of its variances."""
    alpha, rest = a / after, 1 - a
    return Step(
        math.sqrt(a),
        math.sqrt(rest),
        keep=math.sqrt(alpha) * (1 - after) / rest,
        clean=math.sqrt(after) * (1 - alpha) / rest,
        fresh=math.sqrt((1 - after) / rest * (1 - alpha)),
    )


def _renoise(a: float, after: float) -> Step:
    """Song et al. (2021), equation 12 with the largest sigma, sqrt(1 - a'), as in consistency models."""
    return Step(math.sqrt(a), math.sqrt(1 - a), clean=math.sqrt(after), fresh=math.sqrt(1 - after))


def _dpmpp(before: float, a: float, after: float) -> Step:
    """Lu et al. (2022), algorithm 2, "2M", with lambda = log(sqrt(a) / sqrt(1 - a)).

    The first step has no step before it and the last one ends at lambda = infinity: both are of first order, DDIM.
    """
    first = Step(math.sqrt(a), math.sqrt(1 - a), keep=math.sqrt((1 - after) / (1 - a)))
    weight = math.sqrt(after) - math.sqrt(a) * first.keep  # sqrt(a') (1 - exp(-h)), h = lambda' - lambda
    if before == a or after == 1:
        return first._replace(clean=weight)
    correction = weight * (_lambda(after) - _lambda(a)) / (2 * (_lambda(a) - _lambda(before)))
    return first._replace(clean=weight + correction, before=-correction)


def _lambda(a: float) -> float:
    return (math.log(a) - math.log(1 - a)) / 2


def noise_paths(generators: Sequence[torch.Generator], draws: int, shape: tuple[int, int]) -> Tensor:
    """All noise of a denoising (N, B, T, A): the start noise and then that of each step that adds some.

    Every row draws from its own generator, (T, A) at a time. Where one draw of (N, T, A) gives the same numbers (on
    the CPU, which fills blocks of 16), that is what is done.
    """
    whole = math.prod(shape) % 16 == 0

    def path(g: torch.Generator) -> Tensor:
        if whole and g.device.type == "cpu":
            return torch.randn((draws, *shape), generator=g)
        return torch.stack([torch.randn(shape, generator=g, device=g.device) for _ in range(draws)])

    return torch.stack([path(g) for g in generators], dim=1)


def draws(steps: Sequence[Step]) -> int:
    """How often a row draws noise: for its start, and for each step that adds some."""
    return 1 + sum(step.fresh > 0 for step in steps)


def denoise(
    denoiser: nn.Module, steps: Sequence[Step], clip: float, t: Tensor, condition: Tensor, noise: Tensor
) -> Tensor:
    """Clean normalised action chunks (B, T, A), a function of the tensors alone: nothing is drawn or read back.

    Args:
        denoiser: Predicts noise from (noisy (B, T, A), t (B,), condition (B, G)).
        steps: Numbers of the steps.
        clip: Largest magnitude of a clean number.
        t: Diffusion steps (S,).
        condition: Normalised, flattened observations (B, G).
        noise: Start noise and noise to add (N, B, T, A), as `noise_paths` draws it.
    """
    predict = _predictor(denoiser, t, condition)
    x, fresh, before = noise[0], iter(noise[1:]), noise[0]
    for i, step in enumerate(steps):
        eps = predict(i, x).to(x.dtype)
        clean = torch.add(x, eps, alpha=-step.sigma).div_(step.alpha).clamp_(-clip, clip)
        following = step.clean * clean
        for factor, term in ((step.keep, x), (step.predicted, eps), (step.before, before)):
            if factor:
                following.add_(term, alpha=factor)
        if step.fresh:
            following.add_(next(fresh), alpha=step.fresh)
        x, before = following, clean
    return x


def _predictor(denoiser: nn.Module, t: Tensor, condition: Tensor) -> Callable[[int, Tensor], Tensor]:
    """A function of i and x (B, T, A) that predicts the noise at t[i]."""
    if isinstance(denoiser, ConditionalUnet1d):
        return denoiser.predictor(t, condition)
    return lambda i, x: denoiser(x, t[i].expand(len(x)), condition)


def denoise_by_diffusers(
    denoiser: nn.Module,
    scheduler: Scheduler,
    condition: Tensor,
    start: Tensor,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """The plain form of `denoise`: step by step through a scheduler of diffusers.

    Args:
        denoiser: Predicts noise from (noisy (B, T, A), t (B,), condition (B, G)).
        scheduler: From `diffusers_scheduler`.
        condition: Normalised, flattened observations (B, G).
        start: Start noise (B, T, A).
        generators: Sources of the noise that steps add, one per row.
    """
    rows: Any = list(generators)  # diffusers takes one per row, though its annotation says one in all
    x = start
    for t in scheduler.timesteps:
        prediction = denoiser(x, t.to(x.device).expand(len(x)), condition).float()
        x = scheduler.step(prediction, t, x, generator=rows, return_dict=False)[0]
    return x


class ClippedDPMSolver(DPMSolverMultistepScheduler):
    """DPM-Solver++ that clips clean samples to +-`sample_max_value`, as DDPM's and DDIM's schedulers do.

    Theirs has no such option, and the data prediction of the noisiest steps needs it: sqrt(a) is 0.0005 at the end of
    the cosine chain, which magnifies the network's error two thousand times. (Its `thresholding` divides by the
    threshold afterwards and so rescales whatever is clipped.)
    """

    def convert_model_output(self, model_output: Tensor, *, sample: Tensor) -> Tensor:  # type: ignore[override]
        """The clean sample that the predicted noise implies, clipped."""
        limit: float = self.config["sample_max_value"]
        return super().convert_model_output(model_output, sample=sample).clamp(-limit, limit)


class RenoisingScheduler(DDIMScheduler):
    """DDIM's other end: the clean sample that is predicted, noised anew to the level of the next step.

    Theirs gets there by an `eta` that differs from step to step, up to the root of a rounding error.
    """

    def step(  # type: ignore[override]
        self, model_output: Tensor, timestep: int, sample: Tensor, *, generator: Any, return_dict: bool = False
    ) -> tuple[Tensor]:
        """The next sample, from the predicted noise; the last is clean."""
        step: Any = super().step(model_output, timestep, sample)
        clean: Tensor = step.pred_original_sample
        following = int(timestep) - self.config["num_train_timesteps"] // (self.num_inference_steps or 1)
        if following < 0:
            return (clean,)
        a = self.alphas_cumprod[following]
        fresh = randn_tensor(clean.shape, generator=generator, device=clean.device, dtype=clean.dtype)
        return (a.sqrt() * clean + (1 - a).sqrt() * fresh,)


Scheduler = DDPMScheduler | DDIMScheduler | ClippedDPMSolver


def diffusers_scheduler(sampler: Sampler, chain: int, clip: float) -> Scheduler:
    """The diffusers scheduler of a sampler, its timesteps set.

    Args:
        sampler: Scheme and number of steps.
        chain: Length of the noising chain.
        clip: Largest magnitude of a clean number.

    Raises:
        ValueError: If the sampler has more steps than the chain.
    """
    timesteps = sampler.timesteps(chain)
    options: dict[str, Any] = dict(
        num_train_timesteps=chain, beta_schedule="squaredcos_cap_v2", prediction_type="epsilon"
    )
    if sampler.name == "dpmpp":
        solver = ClippedDPMSolver(**options, sample_max_value=clip)
        solver.set_timesteps(timesteps=timesteps)
        return solver
    options |= dict(clip_sample=True, clip_sample_range=clip)
    scheduler: DDPMScheduler | DDIMScheduler
    if sampler.name == "ddim":
        scheduler = DDIMScheduler(**options)
    elif sampler.name == "renoise":
        scheduler = RenoisingScheduler(**options)
    else:
        scheduler = DDPMScheduler(**options, variance_type="fixed_small")
    scheduler.set_timesteps(sampler.steps)
    return scheduler


Function = Callable[..., Tensor]
Record = Callable[[Function, list[Tensor]], tuple[Callable[[], None], Tensor]]
"""Prepares a function on tensors that stay where they are: returns what runs it again, and where its result lies."""


def record_cuda_graph(function: Function, inputs: list[Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Capture a function as a CUDA graph."""
    return capture(lambda: function(*inputs), inputs[0].device)


class Replay:
    """Records a function once and replays it on new inputs: a whole denoising then costs one launch.

    A recording sees weights that are changed in place. It is made anew when `key`, or the shape, type or device of an
    input, differs from the last call's. A copy of the object starts without a recording.

    Args:
        record: Records; by default as a CUDA graph.
    """

    def __init__(self, record: Record = record_cuda_graph) -> None:
        self.record = record
        self._key: Hashable = None

    def __call__(self, key: Hashable, function: Function, *inputs: Tensor) -> Tensor:
        """function(*inputs), by replaying it.

        Args:
            key: Equal for functions that do the same to tensors.
            function: Of tensors only; it must not draw, nor wait for the device.
            inputs: What it is called with; all on one device.
        """
        key = (key, *((x.shape, x.dtype, x.device) for x in inputs))
        if key != self._key:
            static = [x.clone() for x in inputs]
            self._run, self._output = self.record(function, static)
            self._inputs, self._key = static, key
        for recorded, x in zip(self._inputs, inputs, strict=True):
            recorded.copy_(x)
        self._run()
        return self._output.clone()

    def __deepcopy__(self, memo: dict[int, Any]) -> Replay:
        return Replay(self.record)
