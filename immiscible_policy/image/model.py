"""An image model is put together from parts: a path, a network, what pixels become, and for some a text.

    pixels --coder--> x --noise chosen for x--> path --> x_t ----+
                      |                                          +--> network --> what is predicted
    prompts ----------|--text--> tokens, pooled (a condition) ---+

Shape legend: B images, S pixels along a side; C, H, W what is noised (3, S, S, or a latent's (4, S/8, S/8)); L tokens
of E numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torchdiffeq import odeint

from immiscible_policy.noise import Selector
from immiscible_policy.noise.inputs import draw
from immiscible_policy.path import Ddpm, Flow, PathSample, ProbabilityPath
from immiscible_policy.path.base import Network
from immiscible_policy.path.consistency import Consistency
from immiscible_policy.policy.policy import require_scale
from immiscible_policy.solver import Pndm, Solver, draws, invert, solve
from immiscible_policy.training.state import Teacher

AVERAGED = "averaged."  # Begins the names of a teacher's weights in a checkpoint
TOLERANCE = 1e-5  # Absolute and relative tolerance of the adaptive solver


class ImageSample(NamedTuple):
    """What sampling yields; network calls from the noisiest on."""

    images: Tensor  # samples (B, 3, S, S), pixels in [-1, 1]
    predicted: Tensor  # clean sample that each call predicts (steps, B, C, H, W); `coder.decode` makes pixels of it
    t: Tensor  # what the network is given of the time at each call (steps,)


class TextSample(NamedTuple):
    """A `PathSample` of images, and the token embeddings (B, L, E) that the network sees beside it."""

    noisy: Tensor
    target: Tensor
    t: Tensor
    text: Tensor


class Text(NamedTuple):
    """Embedded prompts: tokens (B, L, E), which the network attends to; pooled (B, E), which stands for the whole."""

    tokens: Tensor
    pooled: Tensor


class Coder(Protocol):
    """What pixels become before they are noised; held by a model without being trained or saved."""

    size: int  # side S of the images
    shape: tuple[int, int, int]  # (C, H, W) of what is noised
    data_scale: float  # factor on the normalised clean sample before selection and noising, undone by `decode`
    limit: float  # largest magnitude of a number of a clean sample
    frozen: tuple[nn.Module, ...]  # what moves with the model, and neither trains nor is saved

    def encode(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Clean samples (B, C, H, W), float32, of pixels (B, 3, S, S) in [-1, 1]."""

    def decode(self, x: Tensor) -> Tensor:
        """Pixels (B, 3, S, S), clipped to [-1, 1], of clean samples (B, C, H, W)."""


class TextEncoder(Protocol):
    """Embeds prompts; held as a coder is."""

    frozen: tuple[nn.Module, ...]

    def __call__(self, prompts: Sequence[str]) -> Text:
        """Embeddings of some prompts, float32."""


class PixelCoder:
    """Pixels themselves, times `data_scale`.

    Pixels in [-1, 1] have a standard deviation of about 0.5, what is noised 0.5 data_scale (Figure 8 of arXiv
    2505.18521 goes by this number; its default, 0.5, changes nothing).
    ValueError if data_scale is not positive.
    """

    def __init__(self, size: int, data_scale: float = 1.0) -> None:
        require_scale(data_scale)
        self.size, self.shape = size, (3, size, size)
        self.data_scale = self.limit = data_scale
        self.frozen: tuple[nn.Module, ...] = ()

    def encode(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Nothing is drawn."""
        return self.data_scale * pixels

    def decode(self, x: Tensor) -> Tensor:
        """The inverse, clipped."""
        return (x / self.data_scale).clamp(-1, 1)


class ImageModel(nn.Module):
    """Learns images and draws them.

    Coder and text encoder are pretrained and frozen: they are in no checkpoint and no optimizer.

    Args:
        path: How clean sample and noise meet, and what the network learns.
        denoiser: The network, the only part that trains; diffusers' `UNet2DModel`, `UNet2DConditionModel` where there
            is a text, or a module called alike: (x_t (B, C, H, W), time (B,)[, encoder_hidden_states=(B, L, E)]) ->
            object whose `sample` is the output.
        coder: Pixels to what is noised and back.
        solver: How images are drawn unless another solver is named; None for the adaptive one (Dormand-Prince), which
            flow matching has.
        text: Prompts to embeddings, where the model knows prompts.
        noise_offset: Standard deviation of one further Gaussian number per image and channel, added to the noise
            *after* selection: selectors compare samples with plain noise, as their laws assume.
        prompt_dropout: Share of training prompts that are replaced by the empty one, for classifier-free guidance.
        averaged: The denoiser with averaged weights that a path's loss looks at, where it has such a teacher.
        guidance: w in `empty + w (prompted - empty)`, how strongly samples follow their prompts; 1 is the network's
            prediction for the prompt alone.

    ValueError if a number is out of range, or the path does not go with the solver.
    """

    def __init__(
        self,
        path: ProbabilityPath,
        denoiser: nn.Module,
        coder: Coder,
        *,
        solver: Solver | None = None,
        text: TextEncoder | None = None,
        noise_offset: float = 0.0,
        prompt_dropout: float = 0.0,
        guidance: float = 1.0,
        averaged: nn.Module | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("noise_offset", noise_offset), ("guidance", guidance)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name}={value}: needs a number, 0 or more")
        if not 0 <= prompt_dropout <= 1:
            raise ValueError(f"prompt_dropout={prompt_dropout}: needs a share between 0 and 1")
        self.path, self.denoiser, self.coder, self.averaged = path, denoiser, coder, averaged
        self.solver, self.text = solver, text
        self.noise_offset, self.prompt_dropout, self.guidance = noise_offset, prompt_dropout, guidance
        if solver is not None:
            solver.plan(path)
        elif not isinstance(path, Flow):
            raise ValueError("the adaptive solver follows a velocity, which flow matching alone learns; name a solver")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ImageModel:
        """What `to`, `cuda` and `cpu` call: the pretrained parts move along."""
        for module in (*self.coder.frozen, *(() if self.text is None else self.text.frozen)):
            module._apply(fn)
        return super()._apply(fn, recurse)

    def noised(
        self,
        pixels: Tensor,
        select: Selector,
        *,
        step: int | None = None,
        generator: torch.Generator,
        prompts: Sequence[str] | None = None,
    ) -> PathSample | TextSample:
        """Draw all that is random in a training step of images (B, 3, S, S), float, in [-1, 1], and choose the noise.

        The selector sees the scaled clean samples; its condition is the prompts' pooled embedding (B, E), where equal
        prompts have equal rows, or None without prompts. The generator draws posterior, dropped prompts, noise, offset
        and times, in this order. `step` is for what follows a schedule; None is the end of training.
        ValueError if the images have another shape, or the prompts another number.
        """
        size = self.coder.size
        if pixels.shape[1:] != (3, size, size):
            raise ValueError(f"pixels {tuple(pixels.shape)}: this model needs RGB images (B, 3, {size}, {size})")
        x = self.coder.encode(pixels, generator)
        text = self.embedded(prompts, len(x))
        if text is not None and prompts is not None and self.prompt_dropout:
            text = self._dropped(text, generator)
        condition = None if text is None or prompts is None else text.pooled
        noise = select(x, condition=condition, step=step, generator=generator)
        if self.noise_offset:
            noise = noise + self.noise_offset * draw(x.new_empty(*x.shape[:2], 1, 1), generator)
        t = self.path.times(len(x), generator, step=step).to(x.device)
        sample = self.path.sample(x, noise, t)
        return sample if text is None else TextSample(*sample, text.tokens)

    def loss(self, batch: Any) -> Tensor:
        """Mean loss of what `noised` returned, or of some of its rows: a scalar.

        It has no randomness (dropout apart) and no sizes that depend on values.
        """
        return self.path.loss(self.network(batch.text if self.text is not None else None), batch)

    @property
    def teacher(self) -> Teacher | None:
        """What training has to keep up to date beside the weights."""
        if self.averaged is None or not isinstance(self.path, Consistency):
            return None
        return Teacher(self.averaged, self.path.keep)

    def choose(
        self, name: str | None = None, steps: int | None = None, spacing: str = "trailing", eta: float = 0.0
    ) -> Solver | Pndm | None:
        """The solver that some words name, the model's own wherever they are silent.

        Without a name it is the path's first one, without steps as many as the model's own solver makes (50 if
        adaptive).
        ValueError if the path has no such solver or no such grid of times.
        """
        if (name, steps, spacing, eta) == (None, None, "trailing", 0.0):
            return self.solver
        if name == "pndm":
            return self._pndm(Pndm() if steps is None else Pndm(steps), spacing, eta)
        own = 50 if self.solver is None else self.solver.steps
        solver = Solver(name or self.path.solvers[0], own if steps is None else steps, spacing, eta)
        solver.plan(self.path)
        return solver

    def _pndm(self, solver: Pndm, spacing: str, eta: float) -> Pndm:
        """The solver, if this is Stable Diffusion; a ValueError if not."""
        if self.text is None or not isinstance(self.path, Ddpm):
            raise ValueError("solver=pndm: bounds no pixels, so that model=sd alone has it; use another solver")
        if eta:
            raise ValueError(f"eta={eta}: solver=pndm has no eta; use solver=ddim")
        if spacing != "trailing":
            raise ValueError(f"spacing={spacing}: solver=pndm has a grid of its own; leave spacing out")
        solver.scheduler(self.path)
        return solver

    @torch.no_grad()
    def sample(
        self,
        noise: Tensor,
        solver: Solver | Pndm | None = None,
        *,
        prompts: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
        path: ProbabilityPath | None = None,
    ) -> ImageSample:
        """Draw images from start noises.

        `noise`: start noises (B, C, H, W), standard Gaussian. `solver`: how; None for the model's own. The adaptive one
        chooses its steps by the error of the whole batch; of it and of `Pndm` only the end is shown. `path`: reads the
        network's outputs in the place of the model's own path, for editing.
        ValueError if the path has no such solver, the prompts have another number, or the solver adds noise and there
        is no generator.
        """
        solver, path = solver or self.solver, path or self.path
        network = self._prompted(prompts, len(noise))
        if solver is None or isinstance(solver, Pndm):
            chain: Any = path  # of `Pndm` a `Ddpm`
            x = self._adaptive(network, path, noise) if solver is None else solver.solve(network, chain, noise)
            return ImageSample(self.coder.decode(x), x.unsqueeze(0), torch.ones(1, device=noise.device))
        plan = solver.plan(self.path)
        if draws(plan) > 1 and generator is None:
            raise ValueError(f"sampling_steps={solver.steps} needs a generator for the noise between the steps")
        noises = torch.stack([noise, *(draw(noise, generator) for _ in range(draws(plan) - 1))])
        times = torch.tensor([step.t for step in plan], device=noise.device)
        predicted: list[Tensor] = []
        x = solve(
            lambda i, x: network(x, times[i].expand(len(x))).float(),
            path,
            plan,
            noises,
            limit=self.coder.limit,
            record=predicted,
        )
        return ImageSample(self.coder.decode(x), torch.stack(predicted), times)

    @torch.no_grad()
    def invert(
        self,
        pixels: Tensor,
        solver: Solver,
        *,
        prompts: Sequence[str] | None = None,
        generator: torch.Generator,
    ) -> Tensor:
        """Start noises (B, C, H, W) from which the solver draws images (B, 3, S, S) in [-1, 1] again, nearly.

        See `solver.inversion`, also for what it raises. The generator draws what the coder draws.
        """
        network, plan = self._prompted(prompts, len(pixels)), solver.plan(self.path)

        def calls(i: int, x: Tensor) -> Tensor:
            return network(x, torch.full((len(x),), plan[i].t, device=x.device)).float()

        return invert(calls, self.path, plan, self.coder.encode(pixels, generator))

    def _adaptive(self, network: Network, path: ProbabilityPath, noise: Tensor) -> Tensor:
        """The end (B, C, H, W) of straight paths from start noises at t = 0, by Dormand-Prince."""

        def velocity(t: Tensor, x: Tensor) -> Tensor:
            t = t.to(x)
            clean, start = path.split(path.evaluate(network, x, t.expand(len(x))), x, t, 1 - t)
            return clean - start

        ends = torch.tensor([0.0, 1.0], device=noise.device)
        return odeint(velocity, noise, ends, method="dopri5", rtol=TOLERANCE, atol=TOLERANCE)[-1]

    def network(self, tokens: Tensor | None = None) -> Network:
        """The network as paths and solvers call it, beside the tokens (B, L, E) of each image."""
        if tokens is None:
            return lambda x, t: self.denoiser(x, t).sample
        return lambda x, t: self.denoiser(x, t, encoder_hidden_states=tokens).sample

    def _prompted(self, prompts: Sequence[str] | None, count: int) -> Network:
        """The network for prompts, with classifier-free guidance (Ho and Salimans, 2022)."""
        text = self.embedded(prompts, count)
        if text is None or prompts is None or self.guidance == 1:
            return self.network(None if text is None else text.tokens)
        empty = self.embedded(None, count)
        assert empty is not None
        both = self.network(torch.cat([empty.tokens, text.tokens]))

        def guided(x: Tensor, t: Tensor) -> Tensor:
            without, prompted = both(torch.cat([x, x]), torch.cat([t, t])).float().chunk(2)
            return without + self.guidance * (prompted - without)

        return guided

    def embedded(self, prompts: Sequence[str] | None, count: int) -> Text | None:
        """Embeddings of so many prompts; None where the model knows no prompts."""
        if self.text is None:
            return None
        if prompts is not None and len(prompts) != count:
            raise ValueError(f"{len(prompts)} prompts for {count} images; each image needs one")
        return self.text([""] * count if prompts is None else prompts)

    def _dropped(self, text: Text, generator: torch.Generator) -> Text:
        """Embeddings of which a share is replaced by the empty prompt's."""
        uniform = torch.rand(len(text.pooled), 1, generator=generator, device=generator.device)
        dropped = uniform.to(text.pooled.device) < self.prompt_dropout
        empty = self.embedded(None, 1)
        assert empty is not None
        tokens = torch.where(dropped[..., None], empty.tokens, text.tokens)
        return Text(tokens, torch.where(dropped, empty.pooled, text.pooled))
