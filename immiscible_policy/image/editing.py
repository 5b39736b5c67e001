"""In-painting, out-painting and inversion with a trained model that never saw a gap.

    in-painting          out-painting
    k k k k k k          . . . . . .
    k k . . k k          . . k k . .          k  known pixels, kept
    k k . . k k          . . k k . .          .  replaced by noise, then filled in by the model
    k k k k k k          . . . . . .

arXiv 2505.18521 edits images by replacing their centre, or all but their centre, with noise, and leaves the rest open.
Defined here:

* the centre is the square of half the image's side (a quarter of its area);
* the model fills in by plain sampling from the start noise, except that wherever a pixel is known, the clean sample and
  the noise that its network predicts are replaced by the right ones (`KnownPath`). At every step the known part then is
  the original, noised to the level of that step along one fixed path, and what is filled in sees it through the
  network. This is the replacement method of Song et al. (2021, score-based models, appendix I.2) with the noise of the
  known part held fixed, so that a deterministic solver stays one;
* at the end known pixels are the original's exactly. Stable Diffusion does all of this with latents, whose region is
  the image's at their resolution; its known pixels pass through the autoencoder and are not pasted back.

With nothing known this is plain sampling, bit for bit; with everything known it returns the original.

The third edit, `invert`, changes nothing on purpose: it finds the start noise of an image (`ImageModel.invert`) and
draws it again. What differs from the original is what the model cannot tell the noise to remember.

Consistency models draw in one step and have no path to hold on to: they are refused.

Shape legend: B images, S pixels along a side; C, H, W what is noised (3, S, S, or a latent's).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from immiscible_policy.image.model import ImageModel
from immiscible_policy.path.base import Prediction, ProbabilityPath
from immiscible_policy.path.consistency import Consistency
from immiscible_policy.solver import Pndm, Solver

FILLED = ("inpaint", "outpaint")
EDITS = (*FILLED, "invert")


def edit_region(edit: str, size: int) -> Tensor:
    """What an edit fills in (S, S), bool: the centre, or all but the centre; ValueError unless 4 divides S."""
    if edit not in FILLED:
        raise ValueError(f"edit={edit}: choose {' or '.join(FILLED)}")
    if size % 4:
        raise ValueError(f"size={size}: the centre of half the side needs a multiple of 4")
    centre = torch.zeros(size, size, dtype=torch.bool)
    centre[size // 4 : -size // 4, size // 4 : -size // 4] = True
    return centre if edit == "inpaint" else ~centre


class KnownPath:
    """A path on which clean samples (B, C, H, W) and the noise that they meet are known outside a region (H, W)."""

    def __init__(self, path: ProbabilityPath, clean: Tensor, region: Tensor, noise: Tensor) -> None:
        self.path, self.clean, self.region, self.noise = path, clean, region.to(noise.device), noise

    def __getattr__(self, name: str) -> Any:
        """Everything else is as on the model's own path."""
        return getattr(self.path, name)

    def split(self, output: Tensor, noisy: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Prediction:
        """What the output implies where nothing is known, and what is known elsewhere."""
        clean, noise = self.path.split(output, noisy, alpha, sigma)
        return Prediction(torch.where(self.region, clean, self.clean), torch.where(self.region, noise, self.noise))


def fill_in(
    model: ImageModel,
    pixels: Tensor,
    region: Tensor,
    noise: Tensor,
    solver: Solver | Pndm | None = None,
    *,
    prompts: Sequence[str] | None = None,
    generator: torch.Generator,
) -> Tensor:
    """Images (B, 3, S, S), in [-1, 1], whose pixels inside the region the model fills in; see the module for how.

    `pixels`: the originals (B, 3, S, S) in [-1, 1]. `region`: which pixels to fill in (S, S), bool. `noise`: start
    noises (B, C, H, W).
    ValueError if the model cannot edit, or region and latents do not fit together.
    """
    chosen = _editing(model, solver)
    factor = model.coder.size // model.coder.shape[-1]
    clean = model.coder.encode(pixels, generator)
    alpha, sigma = (0.0, 1.0) if chosen is None else chosen.plan(model.path)[0][1:3]
    met = (model.path.start(noise) - alpha * clean) / sigma  # so that sampling starts from the start noise everywhere
    path: Any = KnownPath(model.path, clean, latent_region(region, factor), met)
    images = model.sample(noise, solver, prompts=prompts, generator=generator, path=path).images
    return images if factor > 1 else torch.where(region.to(pixels.device), images, pixels)


def redraw(
    model: ImageModel,
    pixels: Tensor,
    solver: Solver | Pndm | None = None,
    *,
    prompts: Sequence[str] | None = None,
    generator: torch.Generator,
) -> Tensor:
    """Images (B, 3, S, S), in [-1, 1], from the start noises that originals of the same shape are inverted to.

    ValueError if the model cannot edit, or its solver cannot be inverted.
    """
    chosen = _editing(model, solver)
    if chosen is None:
        raise ValueError("edit=invert: the adaptive solver has no steps to go back; say sampling_steps=50")
    noise = model.invert(pixels, chosen, prompts=prompts, generator=generator)
    return model.sample(noise, chosen, prompts=prompts).images


def _editing(model: ImageModel, solver: Solver | Pndm | None) -> Solver | None:
    """How a model edits: by a solver, or its own one; a ValueError if it cannot."""
    if isinstance(model.path, Consistency):
        raise ValueError("a consistency model cannot edit; models of kind ddim, flow and sd can")
    chosen = solver or model.solver
    if isinstance(chosen, Pndm):
        raise ValueError("solver=pndm cannot edit; use solver=ddim")
    return chosen


def latent_region(region: Tensor, factor: int) -> Tensor:
    """The region (S, S) at the resolution of latents; ValueError if one of them covers both kinds of pixels."""
    small = region[::factor, ::factor]
    if not torch.equal(small.repeat_interleave(factor, 0).repeat_interleave(factor, 1), region):
        raise ValueError(f"size={len(region)}: the edges of the region fall within latents of {factor} pixels")
    return small
