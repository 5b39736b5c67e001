"""Stable Diffusion (Rombach et al., 2022): diffusion of an autoencoder's latents, told what to show by a text.

Only the U-Net trains. Autoencoder, text encoder and tokenizer come ready-made and stay as they are: the model holds
them outside torch's registry, so they are in no checkpoint and no optimizer, but moves them along with its own weights.

    pixels  --autoencoder-->  x  --noise chosen for x-->  x_t  --+
                                                                 +-->  U-Net  -->  what is predicted
    prompts --text encoder--> tokens, pooled (a condition)  -----+

Shape legend: B images, S pixels along a side, C x H x W numbers of a latent (4 x S/8 x S/8), L tokens (77) of E
numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from immiscible_policy.image.latents import Latents
from immiscible_policy.image.model import ImageSample
from immiscible_policy.image.pretrained import (
    find_pretrained,
    load_denoiser,
    load_scheduler,
    load_text,
    load_vae,
    pretrained_hash,
)
from immiscible_policy.image.text import Text, TextEncoder
from immiscible_policy.noise import Selector
from immiscible_policy.noise.inputs import draw
from immiscible_policy.store.checkpoint import Checkpoint, CheckpointError

SAMPLING_STEPS = 50
"""DDIM steps where none are asked for."""
PRECISIONS = ("fp32", "bf16")
PREDICTIONS = ("epsilon", "v_prediction")


class NoisedLatents(NamedTuple):
    """A training batch after noising.

    Attributes:
        noisy: x_t (B, C, H, W).
        target: What the U-Net predicts (B, C, H, W): the noise, or the velocity.
        t: Diffusion steps (B,).
        text: Token embeddings of the prompts (B, L, E).
    """

    noisy: Tensor
    target: Tensor
    t: Tensor
    text: Tensor


class StableDiffusion(nn.Module):
    """Denoises latents, conditioned on a text; drawn with DDIM and classifier-free guidance.

    Args:
        denoiser: A `diffusers.UNet2DConditionModel`, or a module called alike: (x_t (B, C, H, W), t (B,),
            encoder_hidden_states=(B, L, E)) -> object whose `sample` is the prediction. The only part that trains.
        latents: Pixels to latents and back.
        text: Prompts to embeddings.
        scheduler: The noising chain; its `prediction_type` says what is predicted, epsilon or v_prediction.
        size: Side of the images [px].
        noise_offset: Standard deviation of one further Gaussian number per image and channel, added to the noise
            *after* selection: selectors compare samples with plain noise, as their laws assume.
        prompt_dropout: Share of training prompts that are replaced by the empty one, for classifier-free guidance.
        guidance: w in `empty + w (prompted - empty)`, how strongly samples follow their prompts; 1 follows the
            U-Net's word alone.

    Raises:
        ValueError: If a number is out of range, or the chain predicts something else.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        latents: Latents,
        text: TextEncoder,
        scheduler: DDIMScheduler,
        *,
        size: int,
        noise_offset: float = 0.0,
        prompt_dropout: float = 0.0,
        guidance: float = 7.5,
    ) -> None:
        super().__init__()
        for name, value in (("noise_offset", noise_offset), ("guidance", guidance)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name}={value}: needs a number, 0 or more")
        if not 0 <= prompt_dropout <= 1:
            raise ValueError(f"prompt_dropout={prompt_dropout}: needs a share between 0 and 1")
        prediction = scheduler.config["prediction_type"]
        if prediction not in PREDICTIONS:
            raise ValueError(
                f"prediction_type={prediction} in scheduler_config.json: known are {' and '.join(PREDICTIONS)}"
            )
        self.denoiser = denoiser
        self.latents = latents
        self.text = text
        self.noising = scheduler
        self.size = size
        self.noise_offset = noise_offset
        self.prompt_dropout = prompt_dropout
        self.guidance = guidance
        self.data_scale = latents.data_scale
        side = size // latents.factor
        self.noise_shape = (latents.channels, side, side)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> StableDiffusion:
        """What `to`, `cuda` and `cpu` call: the ready-made parts move along."""
        self.latents.apply(fn)
        self.text.apply(fn)
        return super()._apply(fn, recurse)

    @property
    def length(self) -> int:
        """Diffusion steps of the chain."""
        return self.noising.config["num_train_timesteps"]

    def noised(
        self,
        pixels: Tensor,
        select: Selector,
        *,
        step: int | None,
        generator: torch.Generator,
        prompts: Sequence[str] | None = None,
    ) -> NoisedLatents:
        """Encode a batch, choose noise for its latents, and draw diffusion steps, uniform over the chain.

        Args:
            pixels: Clean images (B, 3, S, S), float, in [-1, 1].
            select: Chooses the noise for the scaled latents (B, C, H, W). Its condition is the prompts' pooled
                embedding (B, E), equal prompts having equal rows; None without prompts.
            step: Training step, for selectors with a schedule.
            generator: Source of posterior, dropped prompts, noise, offset and diffusion steps, in this order.
            prompts: One per image; None for the empty prompt throughout.

        Raises:
            ValueError: If the images have another shape, or the prompts another number.
        """
        if pixels.shape[1:] != (3, self.size, self.size):
            raise ValueError(
                f"pixels have shape {tuple(pixels.shape)}; this model needs RGB images (B, 3, {self.size}, {self.size})"
            )
        x = self.latents.encode(pixels, generator)
        text = self._text(prompts, len(x))
        if prompts is not None and self.prompt_dropout:
            text = self._dropped(text, generator)
        condition = None if prompts is None else text.pooled
        noise = select(x, condition=condition, step=step, generator=generator)
        if self.noise_offset:
            noise = noise + self.noise_offset * draw(x.new_empty(*x.shape[:2], 1, 1), generator)
        t = torch.randint(self.length, (len(x),), generator=generator, device=generator.device).to(x.device)
        noisy = self.noising.add_noise(x, noise, t)  # type: ignore[arg-type]
        return NoisedLatents(noisy, self._target(x, noise, t), t, text.tokens)

    def loss(self, batch: NoisedLatents) -> Tensor:
        """Mean squared error of the prediction in float32, a scalar (Ho et al., 2020, equation 14)."""
        return nn.functional.mse_loss(self.prediction(batch.noisy, batch.t, batch.text), batch.target.float())

    def prediction(self, noisy: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """The U-Net's prediction (B, C, H, W), float32, for x_t, diffusion steps t (B,) and tokens (B, L, E)."""
        return self.denoiser(noisy, t, encoder_hidden_states=text).sample.float()

    @torch.no_grad()
    def sample(
        self,
        noise: Tensor,
        steps: int | None = None,
        *,
        prompts: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
    ) -> ImageSample:
        """Denoise start noises with DDIM, eta = 0: a function of start noises and prompts (Song et al., 2021).

        Args:
            noise: Start noises (B, C, H, W).
            steps: Denoising steps; None for 50.
            prompts: One per image; None for the empty prompt throughout, without guidance.
            generator: Not needed: nothing else is drawn.

        Returns:
            Images in pixels; `predicted` as it is diffused, for `latents.decode`.

        Raises:
            ValueError: If steps or the number of prompts are unusable.
        """
        scheduler = self.ddim(SAMPLING_STEPS if steps is None else steps)
        tokens = self._text(prompts, len(noise)).tokens
        guided = prompts is not None and self.guidance != 1
        empty = self._text(None, len(noise)).tokens if guided else None
        x, predicted = noise, []
        for t in scheduler.timesteps:
            prediction = self._guided(x, t.to(x.device), tokens, empty)
            x, clean = scheduler.step(prediction, t, x, eta=0.0, return_dict=False)
            predicted.append(clean)
        return ImageSample(self.latents.decode(x), torch.stack(predicted), scheduler.timesteps)

    def ddim(self, steps: int) -> DDIMScheduler:
        """The diffusers scheduler that `sample` steps with.

        Raises:
            ValueError: If the chain has no such number of steps.
        """
        if not 1 <= steps < self.length:
            raise ValueError(f"sampling_steps={steps}: Stable Diffusion needs 1 to {self.length - 1}")
        scheduler = DDIMScheduler.from_config(self.noising.config)
        scheduler.set_timesteps(steps)
        return scheduler

    def _guided(self, x: Tensor, t: Tensor, tokens: Tensor, empty: Tensor | None) -> Tensor:
        """The prediction after classifier-free guidance (Ho and Salimans, 2022); plain without empty tokens."""
        if empty is None:
            return self.prediction(x, t.expand(len(x)), tokens)
        both = self.prediction(torch.cat([x, x]), t.expand(2 * len(x)), torch.cat([empty, tokens]))
        without, prompted = both.chunk(2)
        return without + self.guidance * (prompted - without)

    def _text(self, prompts: Sequence[str] | None, count: int) -> Text:
        """Embeddings of so many prompts.

        Raises:
            ValueError: If there are more or fewer.
        """
        if prompts is not None and len(prompts) != count:
            raise ValueError(f"{len(prompts)} prompts for {count} images; each image needs one")
        return self.text([""] * count if prompts is None else prompts)

    def _dropped(self, text: Text, generator: torch.Generator) -> Text:
        """Embeddings of which a share is replaced by the empty prompt's."""
        uniform = torch.rand(len(text.pooled), 1, generator=generator, device=generator.device)
        dropped = uniform.to(text.pooled.device) < self.prompt_dropout
        empty = self.text([""])
        tokens = torch.where(dropped[..., None], empty.tokens, text.tokens)
        return Text(tokens, torch.where(dropped, empty.pooled, text.pooled))

    def _target(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the U-Net is to predict: the noise, or the velocity a eps - s x (Salimans and Ho, 2022)."""
        if self.noising.config["prediction_type"] == "epsilon":
            return noise
        return self.noising.get_velocity(x, noise, t)  # type: ignore[arg-type]


@dataclass(frozen=True)
class StableDiffusionSpec:
    """Everything that shapes a Stable Diffusion model except its U-Net's weights; plain values, stored as JSON.

    Attributes:
        pretrained: Directory in diffusers' layout, or hub id, of the ready-made parts.
        init: The U-Net's first weights: `scratch` for fresh ones, `pretrained` for fine-tuning.
        size: Side of the images [px].
        data_scale: Factor on the latents beside the autoencoder's own.
        noise_offset: See `StableDiffusion`.
        prompt_dropout: See `StableDiffusion`.
        guidance: See `StableDiffusion`.
        gradient_checkpointing: Whether the backward pass computes activations again instead of keeping them.
        frozen_precision: Arithmetic of autoencoder and text encoder: `fp32`, or `bf16` over float32 weights.
        pretrained_hash: Of the ready-made parts, see `pinned`; empty for whatever is there.
        model: Always `sd`.
    """

    pretrained: str
    init: str = "scratch"
    size: int = 256
    data_scale: float = 1.0
    noise_offset: float = 0.0
    prompt_dropout: float = 0.0
    guidance: float = 7.5
    gradient_checkpointing: bool = False
    frozen_precision: str = "fp32"
    pretrained_hash: str = ""
    model: str = "sd"


def pinned(spec: StableDiffusionSpec) -> StableDiffusionSpec:
    """The spec with the hash of the ready-made parts that are there now: it builds with no others afterwards.

    Raises:
        ValueError: If the parts are missing.
    """
    return replace(spec, pretrained_hash=pretrained_hash(find_pretrained(spec.pretrained, spec.init)))


def build_stable_diffusion(spec: StableDiffusionSpec) -> StableDiffusion:
    """Build a model; fresh weights are drawn from torch's global stream.

    Raises:
        ValueError: If a value is unusable, parts are missing, are not those of the spec, or do not fit together.
    """
    if spec.frozen_precision not in PRECISIONS:
        raise ValueError(f"frozen_precision={spec.frozen_precision}: known are {' and '.join(PRECISIONS)}")
    directory = find_pretrained(spec.pretrained, spec.init)
    if spec.pretrained_hash and spec.pretrained_hash != pretrained_hash(directory):
        raise ValueError(f"pretrained={spec.pretrained} is not, or no longer, what the model was trained with")
    latents = Latents(load_vae(directory), data_scale=spec.data_scale, precision=spec.frozen_precision)
    text = load_text(directory, spec.frozen_precision)
    denoiser = load_denoiser(directory, spec.init, spec.size // latents.factor)
    _require_fit(spec, latents, text, denoiser.config)
    if spec.gradient_checkpointing:
        keep_random = denoiser.config["dropout"] > 0  # a CUDA graph cannot keep the state of random numbers
        denoiser.enable_gradient_checkpointing(partial(recompute, use_reentrant=False, preserve_rng_state=keep_random))
    return StableDiffusion(
        denoiser,
        latents,
        text,
        load_scheduler(directory),
        size=spec.size,
        noise_offset=spec.noise_offset,
        prompt_dropout=spec.prompt_dropout,
        guidance=spec.guidance,
    )


def _require_fit(spec: StableDiffusionSpec, latents: Latents, text: TextEncoder, unet: Any) -> None:
    """Refuse parts, or a size, that do not fit together."""
    levels = 2 ** (len(unet.block_out_channels) - 1)
    factor = latents.factor * levels
    if spec.size < factor or spec.size % factor:
        raise ValueError(
            f"size={spec.size}: needs a multiple of {factor} (autoencoder {latents.factor} x U-Net {levels})"
        )
    channels, width = latents.channels, text.encoder.config.hidden_size
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


def stable_diffusion_metadata(spec: StableDiffusionSpec) -> dict[str, Any]:
    """What a checkpoint's metadata records about a Stable Diffusion model; the ready-made parts by their hash."""
    return {"image": asdict(spec if spec.pretrained_hash else pinned(spec))}


def read_stable_diffusion_spec(checkpoint: Checkpoint) -> StableDiffusionSpec:
    """What a checkpoint's metadata records about its model; nothing is built.

    Raises:
        CheckpointError: If it describes no Stable Diffusion model that this version knows.
    """
    recorded = checkpoint.metadata.get("image")
    if not isinstance(recorded, dict) or set(recorded) != {field.name for field in fields(StableDiffusionSpec)}:
        raise CheckpointError(f"{checkpoint.path} describes no Stable Diffusion model that this version knows")
    return StableDiffusionSpec(**recorded)


def load_stable_diffusion(
    checkpoint: Checkpoint, pretrained: str | None = None
) -> tuple[StableDiffusion, StableDiffusionSpec]:
    """Build the model of a checkpoint with its EMA weights, in evaluation mode.

    Args:
        checkpoint: What training wrote.
        pretrained: Where the ready-made parts lie now; None for where they lay in training.

    Raises:
        CheckpointError: If the checkpoint is damaged or of another model, or the parts are missing or others.
    """
    spec = read_stable_diffusion_spec(checkpoint)
    if pretrained is not None:
        spec = replace(spec, pretrained=pretrained)
    try:
        model = build_stable_diffusion(replace(spec, init="scratch"))  # its weights are replaced in any case
        model.load_state_dict(checkpoint.tensors("ema"))
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from None
    except RuntimeError:
        raise CheckpointError(f"{checkpoint.path}: the weights do not fit the model it describes") from None
    return model.eval(), spec


def save_pipeline(model: StableDiffusion, directory: Path | str) -> None:
    """Save what `diffusers.DiffusionPipeline.from_pretrained` loads: a StableDiffusionPipeline in safetensors.

    The pipeline draws with DDIM, has no safety checker, and undoes `data_scale` through its autoencoder's
    `scaling_factor`.

    Args:
        model: Its U-Net is saved as it is; for the EMA's weights, within `TrainState.ema_weights` or after loading.
        directory: Created.
    """
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    vae = copy.copy(model.latents.vae)
    vae.register_to_config(scaling_factor=model.latents.scale)
    parts: dict[str, Any] = {
        "vae": vae,
        "text_encoder": model.text.encoder,
        "tokenizer": model.text.tokenizer,
        "unet": model.denoiser,
        "scheduler": model.noising,
        "safety_checker": None,
        "feature_extractor": None,
    }
    StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(directory, safe_serialization=True)
