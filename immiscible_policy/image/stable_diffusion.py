"""Stable Diffusion (Rombach et al., 2022): diffusion of an autoencoder's latents, given a text.

It is an `ImageModel` whose coder is an autoencoder and whose text encoder is CLIP's. Only the U-Net trains.
The pretrained parts come from a directory in diffusers' layout, or a hub id:

    PRETRAINED/
        unet/config.json                                     the denoiser's sizes
        unet/diffusion_pytorch_model.safetensors             its weights, needed by init=pretrained alone
        vae/                                                 pixels to latents and back
        text_encoder/, tokenizer/                            prompts to embeddings
        scheduler/scheduler_config.json                      the noising chain

Only JSON, text and safetensors are read: weights never execute code. Autoencoder and text encoder are pretrained; their
arithmetic is `fp32`, or `bf16` over float32 weights.

Shape legend: B images or prompts, S pixels along a side, C x H x W numbers of a latent (4 x S/8 x S/8), L tokens (77),
E numbers per token.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging

from immiscible_policy.image.model import ImageModel, Text
from immiscible_policy.image.spec import StableDiffusionSpec
from immiscible_policy.image.tiny import TINY, kept
from immiscible_policy.noise.inputs import draw
from immiscible_policy.path import PREDICTIONS, Ddpm
from immiscible_policy.path.ddpm import BETAS
from immiscible_policy.policy.policy import require_scale
from immiscible_policy.solver import Solver

PRECISIONS = ("fp32", "bf16")
INITS = ("scratch", "pretrained")
UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
FROZEN = (
    "unet/config.json",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "scheduler/scheduler_config.json",
)
"""What every run reads, beside the files of tokenizer/."""
CHAIN = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "prediction_type": "epsilon",
}
"""What diffusers takes for a noising chain where its file is silent."""
HOW: dict[str, Any] = {"use_safetensors": True, "output_loading_info": True}
IMAGES = 32
"""Images encoded or decoded at a time; at 256 x 256 pixels each takes more than 0.1 GB on the way."""
PROMPTS = 256  # Prompts that are encoded at a time


class Latents:
    """Encodes pixels into what is diffused, x = z * scaling_factor * data_scale, and decodes it.

    z is drawn from the autoencoder's posterior N(mean, std^2); `scaling_factor` is the autoencoder's own, which brings
    natural images to a standard deviation of about 1 (Rombach et al., 2022, appendix G).
    ValueError if data_scale is not positive.
    """

    limit = math.inf  # latents have no bounds

    def __init__(self, vae: AutoencoderKL, size: int, *, data_scale: float, precision: str) -> None:
        require_scale(data_scale)
        self.vae = vae.eval().requires_grad_(False)
        self.frozen: tuple[nn.Module, ...] = (self.vae,)
        self.size, self.data_scale, self.precision = size, data_scale, precision
        self.factor = 2 ** (len(vae.config["block_out_channels"]) - 1)  # pixels per number along a side
        self.shape = (vae.config["latent_channels"], size // self.factor, size // self.factor)

    @property
    def scale(self) -> float:
        """What z is multiplied by before it is diffused."""
        return self.vae.config["scaling_factor"] * self.data_scale

    @torch.no_grad()
    def encode(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """What is diffused (B, C, H, W), float32, for pixels (B, 3, S, S) in [-1, 1]; draws from the posterior."""
        with self._arithmetic():
            posteriors = [self.vae.encode(part).latent_dist for part in pixels.split(IMAGES)]
        mean, std = (torch.cat([getattr(part, name).float() for part in posteriors]) for name in ("mean", "std"))
        return self.scale * (mean + std * draw(mean, generator))

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """Pixels (B, 3, S, S), clipped to [-1, 1], of what is diffused (B, C, H, W)."""
        with self._arithmetic():
            parts = [self.vae.decode(part / self.scale).sample for part in x.split(IMAGES)]
        return torch.cat(parts).float().clamp(-1, 1)

    def _arithmetic(self) -> torch.autocast:
        return torch.autocast(self.vae.device.type, torch.bfloat16, enabled=self.precision == "bf16")


class ClipText:
    """Embeds prompts as Stable Diffusion does: padded or cut to L tokens, the last layer's states."""

    def __init__(self, tokenizer: CLIPTokenizer, encoder: CLIPTextModel, *, precision: str) -> None:
        self.tokenizer = tokenizer
        self.encoder = encoder.eval().requires_grad_(False)
        self.frozen: tuple[nn.Module, ...] = (self.encoder,)
        self.precision = precision
        self._tokens([""])  # fixes padding and length; later calls change nothing in it, whatever thread they come from

    def __call__(self, prompts: Sequence[str]) -> Text:
        """Embed prompts, each distinct one once; float32, on the encoder's device."""
        distinct = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
        parts = [self._encode(part) for part in self._tokens(list(distinct)).split(PROMPTS)]
        rows = torch.tensor([distinct[prompt] for prompt in prompts], device=self.encoder.device)
        return Text(*(torch.cat(field)[rows] for field in zip(*parts, strict=True)))

    def _tokens(self, prompts: list[str]) -> Tensor:
        """Token numbers (B, L)."""
        length = self.encoder.config.max_position_embeddings
        return self.tokenizer(
            prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids

    @torch.no_grad()
    def _encode(self, tokens: Tensor) -> Text:
        device = self.encoder.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            states = self.encoder(tokens.to(device))
        return Text(states.last_hidden_state.float(), states.pooler_output.float())


def pinned(spec: StableDiffusionSpec) -> StableDiffusionSpec:
    """The spec with the hash of the pretrained parts: it builds with no others; ValueError if parts are missing."""
    return replace(spec, pretrained_hash=pretrained_hash(find_pretrained(spec.pretrained, spec.init)))


def build_stable_diffusion(spec: StableDiffusionSpec) -> ImageModel:
    """A model, fresh weights from torch's global stream; ValueError if values or parts are unusable or do not fit."""
    if spec.frozen_precision not in PRECISIONS:
        raise ValueError(f"frozen_precision={spec.frozen_precision}: choose {' or '.join(PRECISIONS)}")
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
        parts = f"autoencoder {latents.factor} x U-Net {levels}"
        raise ValueError(f"size={spec.size}: needs a multiple of {factor} ({parts})")
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
    with quiet():  # its import says which of its image processors it takes, which here is none
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

        pipeline = StableDiffusionPipeline(**parts, requires_safety_checker=False)
        pipeline.save_pretrained(directory, safe_serialization=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from printing progress bars and warnings: what is wrong is an exception."""
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def find_pretrained(pretrained: str, init: str) -> Path:
    """The parts' directory: a hub id's from the cache or downloaded, that of `tiny` made here the first time.

    ValueError if it or a file is missing.
    """
    if init not in INITS:
        raise ValueError(f"init={init}: choose {' or '.join(INITS)}")
    files = FROZEN + (UNET_WEIGHTS,) * (init == "pretrained")
    directory = kept() if pretrained == TINY else Path(pretrained)
    if not directory.is_dir():
        if pretrained.count("/") != 1 or pretrained.startswith((".", "/", "~")):
            raise ValueError(f"pretrained={pretrained}: no such directory, and not a hub id OWNER/NAME")
        try:
            directory = Path(snapshot_download(pretrained, allow_patterns=[*files, "tokenizer/*"]))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"pretrained={pretrained} is not a directory, and the Hugging Face hub does not give it "
                f"({type(error).__name__}); where there is a network run: hf download {pretrained} "
                f"--include {' '.join(files)} 'tokenizer/*' --local-dir DIR, and use pretrained=DIR"
            ) from None
    missing = [name for name in files if not (directory / name).is_file()]
    if not any((directory / "tokenizer" / name).is_file() for name in ("vocab.json", "tokenizer.json")):
        missing.append("tokenizer/vocab.json")
    if missing:
        raise ValueError(f"pretrained={directory} lacks {', '.join(missing)} (diffusers' layout, safetensors weights)")
    return directory


def pretrained_hash(directory: Path) -> str:
    """SHA-256 of everything that does not train: all but the U-Net's weights, which checkpoints hold themselves."""
    tokenizer = (path.relative_to(directory).as_posix() for path in (directory / "tokenizer").iterdir())
    whole = hashlib.sha256()
    for name in sorted((*FROZEN, *tokenizer)):
        with open(directory / name, "rb") as file:
            whole.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


def load_denoiser(directory: Path, init: str, latent_size: int) -> UNet2DConditionModel:
    """The U-Net, with fresh weights from torch's global stream (`scratch`) or its own; ValueError if one is missing.

    Its config, which pipelines read, records the side of the latents that it will see.
    """
    if init == "pretrained":
        unet = _whole("unet", UNet2DConditionModel.from_pretrained(directory / "unet", **HOW, low_cpu_mem_usage=False))
    else:
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(directory, subfolder="unet"))
    unet.register_to_config(sample_size=latent_size)
    return unet


def load_vae(directory: Path) -> AutoencoderKL:
    """The autoencoder, float32; raises ValueError if a weight is missing."""
    return _whole("vae", AutoencoderKL.from_pretrained(directory / "vae", **HOW, low_cpu_mem_usage=False))


def load_text(directory: Path, precision: str) -> ClipText:
    """Tokenizer and text encoder, float32, in arithmetic of a precision; raises ValueError if a weight is missing."""
    with quiet():
        encoder = _whole("text_encoder", CLIPTextModel.from_pretrained(directory / "text_encoder", **HOW))
    return ClipText(CLIPTokenizer.from_pretrained(directory / "tokenizer"), encoder, precision=precision)


def load_chain(directory: Path) -> Ddpm:
    """The noising chain, and what is predicted of it; ValueError if this version does not know it."""
    config: dict[str, Any] = CHAIN | dict(DDIMScheduler.load_config(directory, subfolder="scheduler"))
    name, ends = config["beta_schedule"], {key: config[key] for key in ("beta_start", "beta_end")}
    if BETAS.get(name) != ends or config["trained_betas"] is not None or config["rescale_betas_zero_snr"]:
        raise ValueError(f"beta_schedule={name} in scheduler_config.json, {ends}: choose from {BETAS}")
    prediction = config["prediction_type"]
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction_type={prediction} in scheduler_config.json: choose from {', '.join(PREDICTIONS)}")
    return Ddpm(config["num_train_timesteps"], betas=name, prediction=prediction)


def _whole(part: str, loaded: Any) -> Any:
    """A loaded model in float32, none of whose weights the libraries had to invent."""
    model, about = loaded
    missing = sorted(about["missing_keys"])
    if missing:
        raise ValueError(f"pretrained: {len(missing)} weights of {part} are not in its file, {missing[0]} among them")
    return model.float()
