"""In-painting and out-painting with a trained model that never saw a mask.

    in-painting          out-painting
    k k k k k k          . . . . . .
    k k . . k k          . . k k . .          k  known pixels, kept
    k k . . k k          . . k k . .          .  replaced by noise, then filled in by the model
    k k k k k k          . . . . . .

arXiv 2505.18521 edits images by replacing their centre, or all but their centre, with noise, and leaves the rest open.
Defined here:

* the centre is the square of half the image's side (a quarter of its area);
* the model fills in by plain sampling from the start noise, except that wherever a pixel is known, the network's answer
  is replaced by the right one: the noise that leads from the known pixel to x_t (or the velocity towards it). At every
  step the known part then is the original, noised to the level of that step along one fixed path, and what is filled in
  sees it through the network. This is the replacement method of Song et al. (2021, score-based models, appendix I.2)
  with the noise of the known part held fixed, so that a deterministic sampler stays one;
* at the end known pixels are the original's exactly. Stable Diffusion does all of this with latents, whose mask is the
  image's at their resolution; its known pixels pass through the autoencoder and are not pasted back.

With nothing known this is plain sampling, bit for bit; with everything known it returns the original. Consistency
models draw in one step and have no path to hold on to: they are refused.

Shape legend: B images, S pixels along a side; C, H, W what is noised (3, S, S, or a latent's).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from immiscible_policy.image.diffusion import ImageDiffusion
from immiscible_policy.image.flow import FlowMatching
from immiscible_policy.image.model import ImageModel

EDITS = ("inpaint", "outpaint")

Answer = Callable[[Tensor, Tensor], Tensor]
"""What a network that knew the clean sample would answer (B, C, H, W) to x_t (B, C, H, W) and times (B,)."""


def edit_mask(edit: str, size: int) -> Tensor:
    """Which pixels (S, S) an edit fills in, bool.

    Args:
        edit: `inpaint`: the centre; `outpaint`: all but the centre.
        size: Side S of the images.

    Raises:
        ValueError: If the edit is unknown, or the side has no half around a centre.
    """
    if edit not in EDITS:
        raise ValueError(f"edit={edit}: known are {' and '.join(EDITS)}")
    if size % 4:
        raise ValueError(f"size={size}: the centre of half the side needs a multiple of 4")
    centre = torch.zeros(size, size, dtype=torch.bool)
    centre[size // 4 : -size // 4, size // 4 : -size // 4] = True
    return centre if edit == "inpaint" else ~centre


def fill_in(
    model: ImageModel,
    pixels: Tensor,
    mask: Tensor,
    noise: Tensor,
    steps: int | None = None,
    *,
    prompts: Sequence[str] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Images (B, 3, S, S), in [-1, 1], whose masked pixels the model fills in; see the module for how.

    Args:
        model: An `ImageDiffusion`, `FlowMatching` or `StableDiffusion`.
        pixels: The originals (B, 3, S, S) in [-1, 1].
        mask: Which pixels to fill in (S, S), bool.
        noise: Start noises (B, C, H, W).
        steps: Sampling steps; None for the model's own best.
        prompts: One per image, where the model knows prompts.
        generator: Of the latents' posterior, for Stable Diffusion.

    Raises:
        ValueError: If the model cannot edit, or mask and latents do not fit together.
    """
    if hasattr(model, "latents"):  # Stable Diffusion, whose module other models need not import
        return _fill_in_latents(model, pixels, mask, noise, steps, prompts, generator)
    if isinstance(model, ImageDiffusion):
        answer = _diffusion_answer(model.noising, model.data_scale * pixels)
    elif isinstance(model, FlowMatching):
        answer = _flow_answer(noise, model.data_scale * pixels)
    else:
        raise ValueError(f"{type(model).__name__} cannot edit; models of kind ddim, flow and sd can")
    with _knowing(model.denoiser, answer, mask.to(noise.device)):
        images = model.sample(noise, steps, prompts=prompts, generator=generator).images
    return torch.where(mask.to(pixels.device), images, pixels)


@contextmanager
def _knowing(denoiser: nn.Module, answer: Answer, mask: Tensor) -> Iterator[None]:
    """Inside, the network answers rightly wherever the mask (H, W) does not ask it to fill in."""

    def correct(_: nn.Module, inputs: tuple[Tensor, Tensor], output: Any) -> Any:
        output.sample = torch.where(mask, output.sample, answer(*inputs).to(output.sample.dtype))
        return output

    hook = denoiser.register_forward_hook(correct)
    try:
        yield
    finally:
        hook.remove()


def _diffusion_answer(scheduler: Any, x: Tensor) -> Answer:
    """The noise in x_t = a x + s e, or the velocity a e - s x (Salimans and Ho, 2022).

    Args:
        scheduler: The noising chain, with the prediction's type.
        x: Clean samples (B, C, H, W), as diffused.
    """

    def answer(noisy: Tensor, t: Tensor) -> Tensor:
        a2 = scheduler.alphas_cumprod.to(noisy.device)[t].view(-1, 1, 1, 1)
        a, s = a2.sqrt(), (1 - a2).sqrt()
        clean = x.repeat(len(noisy) // len(x), 1, 1, 1)  # classifier-free guidance asks about every sample twice
        noise = (noisy - a * clean) / s
        return noise if scheduler.config.prediction_type == "epsilon" else a * noise - s * clean

    return answer


def _flow_answer(x0: Tensor, x1: Tensor) -> Answer:
    """The velocity x_1 - x_0 of straight paths from start noises to clean samples (B, C, H, W), at all times."""
    return lambda noisy, t: x1 - x0


def _fill_in_latents(
    model: Any,
    pixels: Tensor,
    mask: Tensor,
    noise: Tensor,
    steps: int | None,
    prompts: Sequence[str] | None,
    generator: torch.Generator | None,
) -> Tensor:
    """`fill_in` for a `StableDiffusion`."""
    if generator is None:
        raise ValueError("editing with Stable Diffusion needs a generator: latents are drawn from a posterior")
    answer = _diffusion_answer(model.noising, model.latents.encode(pixels, generator))
    with _knowing(model.denoiser, answer, latent_mask(mask, model.latents.factor).to(noise.device)):
        return model.sample(noise, steps, prompts=prompts).images


def latent_mask(mask: Tensor, factor: int) -> Tensor:
    """The mask (S, S) at the resolution of latents (S/factor, S/factor).

    Raises:
        ValueError: If some latent covers both kinds of pixels.
    """
    small = mask[::factor, ::factor]
    if not torch.equal(small.repeat_interleave(factor, 0).repeat_interleave(factor, 1), mask):
        raise ValueError(f"size={len(mask)}: the edges of the mask fall within latents of {factor} pixels")
    return small
