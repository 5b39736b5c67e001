"""A tiny Stable Diffusion with random weights: diffusers' and transformers' own classes, to try things in a minute.

It draws nothing that resembles an image. `pretrained=tiny` names it; `python -m immiscible_policy.image.tiny DIRECTORY
WORD...` writes one whose tokenizer knows some words as a whole.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from immiscible_policy.image.data.decode import cache_directory

TINY = "tiny"
"""What `pretrained=` calls it."""
START, END = "<|startoftext|>", "<|endoftext|>"
WIDTH = 32


def tiny_stable_diffusion(directory: Path | str, words: list[str], prediction: str = "epsilon") -> Path:
    """Write a pipeline in diffusers' layout, always the same: about a million numbers, latents 4 x S/8 x S/8.

    Args:
        directory: Created.
        words: Class names; each word of them becomes one token.
        prediction: `epsilon` or `v_prediction`.
    """
    directory = Path(directory)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        count = write_tokenizer(directory / "tokenizer", words)
        write_text_encoder(directory / "text_encoder", count)
        autoencoder().save_pretrained(directory / "vae")
        unet((32, 64), WIDTH).save_pretrained(directory / "unet")
    scheduler(prediction).save_pretrained(directory / "scheduler")
    parts = {
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
    }
    index = {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False} | parts
    (directory / "model_index.json").write_text(json.dumps(index, indent=2))
    return directory


def kept() -> Path:
    """The directory of the tiny pipeline in the user's cache, written there the first time."""
    directory = cache_directory() / "tiny-stable-diffusion"
    if not directory.is_dir():
        directory.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=directory.parent) as scratch:
            made = tiny_stable_diffusion(Path(scratch) / TINY, [])
            if not directory.is_dir():
                os.replace(made, directory)
    return directory


def write_tokenizer(directory: Path, words: list[str]) -> int:
    """Write CLIP's tokenizer for these words, byte by byte for others; returns the number of tokens."""
    letters = sorted(ByteLevel.alphabet())
    merges = list(dict.fromkeys(pair for name in words for word in name.lower().split() for pair in pairs(word)))
    tokens = letters + [letter + "</w>" for letter in letters] + [left + right for left, right in merges]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys([*tokens, START, END]))}
    directory.mkdir(parents=True)
    (directory / "vocab.json").write_text(json.dumps(vocabulary))
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *(f"{a} {b}" for a, b in merges), ""]))
    files = str(directory / "vocab.json"), str(directory / "merges.txt")
    CLIPTokenizer(*files, model_max_length=77).save_pretrained(directory)
    return len(vocabulary)


def pairs(word: str) -> list[tuple[str, str]]:
    """Merges that join a word's letters from the left."""
    parts = [*word[:-1], word[-1] + "</w>"]
    return [("".join(parts[:end]), parts[end]) for end in range(1, len(parts))]


def write_text_encoder(directory: Path, tokens: int) -> None:
    """Write a text encoder of random weights."""
    config = CLIPTextConfig(
        vocab_size=tokens,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=WIDTH,
        bos_token_id=tokens - 2,
        eos_token_id=tokens - 1,
        pad_token_id=tokens - 1,
    )
    save_text_encoder(directory, CLIPTextModel(config))


def save_text_encoder(directory: Path, encoder: Any) -> None:
    """Save a text encoder of transformers' CLIP with weights named as the published ones are."""
    encoder.config.architectures = ["CLIPTextModel"]
    encoder.config.save_pretrained(directory)
    weights = {"text_model." + name.removeprefix("text_model."): part for name, part in encoder.state_dict().items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def autoencoder() -> AutoencoderKL:
    """An autoencoder whose posterior is narrow (standard deviation 0.05 of the latents' own), scaled to about 1."""
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    )
    pictures = torch.nn.functional.interpolate(torch.rand(32, 3, 8, 8) * 2 - 1, size=(64, 64), mode="bilinear")
    with torch.no_grad():
        spread = float(vae.encode(pictures).latent_dist.mean.std())
        vae.quant_conv.weight[4:] = 0.0
        vae.quant_conv.bias[4:] = 2 * torch.log(torch.tensor(0.05 * spread))
    vae.register_to_config(scaling_factor=1 / spread)
    return vae


def unet(channels: tuple[int, int], text_width: int) -> UNet2DConditionModel:
    """A U-Net of two resolutions on latents of eight numbers a side; so many channels, and numbers of a token."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=channels,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=8,
        cross_attention_dim=text_width,
        norm_num_groups=8,
    )


def scheduler(prediction: str) -> DDIMScheduler:
    """Stable Diffusion's noising chain."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction,
    )


if __name__ == "__main__":
    print(tiny_stable_diffusion(sys.argv[1], sys.argv[2:]))
