"""Stable Diffusion (Rombach et al., 2022): diffusion of an autoencoder's latents, given a text.

It is an `ImageModel` whose coder is an autoencoder and whose text encoder is CLIP's. Only the U-Net trains.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from torch.utils.checkpoint import checkpoint as recompute

from immiscible_policy.image.latents import Latents
from immiscible_policy.image.model import ImageModel
from immiscible_policy.image.pretrained import (
    find_pretrained,
    load_chain,
    load_denoiser,
    load_text,
    load_vae,
    pretrained_hash,
)
from immiscible_policy.image.spec import StableDiffusionSpec
from immiscible_policy.solver import Solver

PRECISIONS = ("fp32", "bf16")


def pinned(spec: StableDiffusionSpec) -> StableDiffusionSpec:
    """The spec with the hash of the ready-made parts that are there now: it builds with no others afterwards.

    Raises:
        ValueError: If the parts are missing.
    """
    return replace(spec, pretrained_hash=pretrained_hash(find_pretrained(spec.pretrained, spec.init)))


def build_stable_diffusion(spec: StableDiffusionSpec) -> ImageModel:
    """Build a model; fresh weights are drawn from torch's global stream.

    Raises:
        ValueError: If a value is unusable, parts are missing, are not those of the spec, or do not fit together.
    """
    if spec.frozen_precision not in PRECISIONS:
        raise ValueError(f"frozen_precision={spec.frozen_precision}: known are {' and '.join(PRECISIONS)}")
    directory = find_pretrained(spec.pretrained, spec.init)
    if spec.pretrained_hash and spec.pretrained_hash != pretrained_hash(directory):
        raise ValueError(f"pretrained={spec.pretrained} is not, or no longer, what the model was trained with")
    latents = Latents(load_vae(directory), spec.size, data_scale=spec.data_scale, precision=spec.frozen_precision)
    text = load_text(directory, spec.frozen_precision)
    denoiser = load_denoiser(directory, spec.init, spec.size // latents.factor)
    _require_fit(spec, latents, text.encoder.config.hidden_size, denoiser.config)
    if spec.gradient_checkpointing:
        keep_random = denoiser.config["dropout"] > 0  # a CUDA graph cannot keep the state of random numbers
        denoiser.enable_gradient_checkpointing(partial(recompute, use_reentrant=False, preserve_rng_state=keep_random))
    return ImageModel(
        load_chain(directory),
        denoiser,
        latents,
        solver=Solver("ddim", 50),
        text=text,
        noise_offset=spec.noise_offset,
        prompt_dropout=spec.prompt_dropout,
        guidance=spec.guidance,
    )


def _require_fit(spec: StableDiffusionSpec, latents: Latents, width: int, unet: Any) -> None:
    """Refuse parts, or a size, that do not fit together; `width` is that of the text encoder."""
    levels = 2 ** (len(unet.block_out_channels) - 1)
    factor, channels = latents.factor * levels, latents.shape[0]
    if spec.size < factor or spec.size % factor:
        raise ValueError(
            f"size={spec.size}: needs a multiple of {factor} (autoencoder {latents.factor} x U-Net {levels})"
        )
    if (unet.in_channels, unet.out_channels) != (channels, channels):
        raise ValueError(
            f"pretrained={spec.pretrained}: the U-Net has {unet.in_channels} channels in and {unet.out_channels} out, "
            f"the autoencoder's latents have {channels}"
        )
    if unet.cross_attention_dim != width:
        raise ValueError(
            f"pretrained={spec.pretrained}: the U-Net attends to {unet.cross_attention_dim} numbers per token, "
            f"the text encoder gives {width}"
        )


def save_pipeline(model: ImageModel, scheduler: Any, directory: Path | str) -> None:
    """Save what `diffusers.DiffusionPipeline.from_pretrained` loads: a StableDiffusionPipeline in safetensors.

    It has no safety checker, and undoes `data_scale` through its autoencoder's `scaling_factor`. The model's U-Net is
    saved as it is; for the EMA's weights, within `TrainState.ema_weights` or after loading.
    """
    latents: Any = model.coder
    text: Any = model.text
    vae = copy.copy(latents.vae)
    vae.register_to_config(scaling_factor=latents.scale)
    parts: dict[str, Any] = {
        "vae": vae,
        "text_encoder": text.encoder,
        "tokenizer": text.tokenizer,
        "unet": model.denoiser,
        "scheduler": scheduler,
        "safety_checker": None,
        "feature_extractor": None,
    }
    StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(directory, safe_serialization=True)
