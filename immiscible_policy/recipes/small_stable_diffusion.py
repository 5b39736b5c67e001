"""Training an autoencoder and a CLIP, the frozen parts of a small Stable Diffusion, with the project's loop.

Shape legend: B images, S pixels along a side, L tokens of a prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from immiscible_policy.image.data import Images, to_pixels
from immiscible_policy.image.evaluation.clip import image_processor
from immiscible_policy.image.tiny import save_text_encoder, tiny_stable_diffusion, unet
from immiscible_policy.randomness import derive_seed, torch_generator
from immiscible_policy.training.batches import ShuffledOrder
from immiscible_policy.training.loop import Cadence, train
from immiscible_policy.training.state import TrainState

SIZE, BATCH, WIDTH = 32, 32, 64
"""Pixels along a side, images of a batch, numbers of an embedding."""
DIVERGENCE = 1e-5
"""Weight of the posterior's divergence from N(0, I) beside the squared error of a pixel."""
PIPELINE, CLIP = "pipeline", "clip"
"""Directories that `pretrained=` and `clip=` take."""


class Pictures(NamedTuple):
    """A batch: pixels (B, 3, S, S) in [-1, 1], numbers (B,) of their prompts, noise (B, 4, S/4, S/4) for latents."""

    pixels: Tensor
    prompts: Tensor
    noise: Tensor


class PicturesObjective:
    """A loss of images that are mirrored at random, and of their prompts; batches are functions of (seed, step)."""

    def __init__(self, images: Images, names: list[str], loss: Callable[[Pictures], Tensor], seed: int) -> None:
        numbers = {name: number for number, name in enumerate(names)}
        self.images, self.seed, self.loss = images, seed, loss
        self.numbers = torch.tensor([numbers[name] for name in images.texts or ()])
        self.order = ShuffledOrder(len(images), BATCH, seed)

    def batches(self, step: int) -> list[Pictures]:
        """The batch of a training step."""
        rows = self.order.rows(step)
        generator = torch_generator("cpu", "augmentation", self.seed, step)
        mirrored = torch.rand(len(rows), 1, 1, 1, generator=generator) < 0.5
        pixels = to_pixels(self.images.pixels(rows))
        noise = torch.randn(len(rows), 4, SIZE // 4, SIZE // 4, generator=generator)
        return [Pictures(torch.where(mirrored, pixels.flip(-1), pixels), self.numbers[rows], noise)]


def train_parts(
    images: Images, out: Path, *, steps: int, seed: int, record: Callable[[str, dict[str, Any]], None]
) -> None:
    """Train both on images of SIZE pixels with prompts, and write PIPELINE and CLIP into a directory.

    PIPELINE holds, in diffusers' layout, the autoencoder, CLIP's text encoder, the tokenizer and an untrained U-Net;
    CLIP, in transformers' layout, the whole model, for CLIPScore. `record` receives a model's name and its metrics.
    """
    torch.manual_seed(derive_seed("weights", seed))  # torch's initialisers draw from the global stream alone
    names = sorted(set(images.texts or ()))
    pipeline = tiny_stable_diffusion(out / PIPELINE, names)
    tokenizer = CLIPTokenizer.from_pretrained(pipeline / "tokenizer")

    def fit(name: str, model: nn.Module, loss: Callable[[Pictures], Tensor]) -> None:
        state = TrainState(
            model,
            lr=1e-3,
            betas=(0.9, 0.999),
            weight_decay=0.01,
            warmup_steps=steps // 10,
            steps=steps,
            ema_power=0.75,
            ema_max=0.0,
        )
        train(
            state,
            PicturesObjective(images, names, loss, seed),
            Cadence(steps, log_every=100, eval_every=steps, checkpoint_every=steps),
            precision="fp32",
            record=lambda row: record(name, row),
            evaluate=lambda state: {},
            save=lambda state: None,
        )
        model.eval()

    vae = small_autoencoder()
    fit("autoencoder", vae, lambda batch: rebuilding_loss(vae, batch))
    with torch.no_grad():
        some = to_pixels(images.pixels(torch.arange(min(500, len(images)))))
        vae.register_to_config(scaling_factor=1 / float(vae.encode(some).latent_dist.mean.std()))
    vae.save_pretrained(pipeline / "vae")
    unet((64, 96), WIDTH).save_pretrained(pipeline / "unet")  # of 2.2 million parameters

    clip, words = small_clip(tokenizer), tokenizer(names, padding=True, return_tensors="pt")
    fit("clip", clip, lambda batch: matching_loss(clip, words, batch))
    save_text_encoder(pipeline / "text_encoder", clip.text_model)
    side = {"shortest_edge": SIZE}, {"height": SIZE, "width": SIZE}
    views = image_processor()(size=side[0], crop_size=side[1], image_mean=[0.5] * 3, image_std=[0.5] * 3)
    for part in (clip, tokenizer, views):
        part.save_pretrained(out / CLIP)


def small_autoencoder() -> AutoencoderKL:
    """An autoencoder (B, 3, S, S) <-> (B, 4, S/4, S/4) of 0.7 million parameters."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
    )


def small_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """A CLIP of 0.7 million parameters: two layers read the prompt, four the image in patches of 4 x 4 pixels."""
    shared = {"num_attention_heads": 4, "projection_dim": WIDTH}
    text = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2, "vocab_size": len(tokenizer)}
    tokens = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    image = {"hidden_size": 2 * WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 4}
    sides = {"image_size": SIZE, "patch_size": 4}
    config = CLIPConfig(text_config=shared | text | tokens, vision_config=shared | image | sides, projection_dim=WIDTH)
    return CLIPModel(config)


def rebuilding_loss(vae: AutoencoderKL, batch: Pictures) -> Tensor:
    """Mean squared error of rebuilt pixels, plus the weighted divergence of the posterior, a scalar."""
    posterior = vae.encode(batch.pixels).latent_dist
    rebuilt = vae.decode(posterior.mean + posterior.std * batch.noise).sample
    return nn.functional.mse_loss(rebuilt, batch.pixels) + DIVERGENCE * posterior.kl().mean()


def matching_loss(clip: CLIPModel, words: Any, batch: Pictures) -> Tensor:
    """CLIP's loss (Radford et al., 2021) of images and all prompts' tokens `words` (N, L), a scalar.

    The images of a batch that share a prompt all match it.
    """
    logits = clip(pixel_values=batch.pixels, **words).logits_per_image[:, batch.prompts]  # (B, B)
    same = (batch.prompts[:, None] == batch.prompts).float()
    target = same / same.sum(dim=1, keepdim=True)
    return (nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)) / 2
