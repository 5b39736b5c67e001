"""Where the ready-made parts of Stable Diffusion come from: a directory in diffusers' layout, or a hub id.

    PRETRAINED/
        unet/config.json                                     the denoiser's sizes
        unet/diffusion_pytorch_model.safetensors             its weights, needed by init=pretrained alone
        vae/                                                 pixels to latents and back
        text_encoder/, tokenizer/                            prompts to embeddings
        scheduler/scheduler_config.json                      the noising chain

Only JSON, text and safetensors are read: weights never execute code.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from huggingface_hub import snapshot_download
from transformers import CLIPTextModel, CLIPTokenizer

from immiscible_policy.image.text import ClipText
from immiscible_policy.path import PREDICTIONS, Ddpm
from immiscible_policy.path.ddpm import BETAS

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


def find_pretrained(pretrained: str, init: str) -> Path:
    """The directory that holds the parts; a hub id's comes from the Hugging Face cache, or is downloaded into it.

    Raises:
        ValueError: If init is unknown, there is no such directory or hub model, or a file is missing.
    """
    if init not in INITS:
        raise ValueError(f"init={init}: Stable Diffusion knows {' and '.join(INITS)}")
    files = FROZEN + (UNET_WEIGHTS,) * (init == "pretrained")
    directory = Path(pretrained)
    if not directory.is_dir():
        directory = _from_hub(pretrained, files)
    missing = [name for name in files if not (directory / name).is_file()]
    if not any((directory / "tokenizer" / name).is_file() for name in ("vocab.json", "tokenizer.json")):
        missing.append("tokenizer/vocab.json")
    if missing:
        raise ValueError(
            f"pretrained={pretrained}: {directory} lacks {', '.join(missing)} (diffusers' layout, safetensors weights)"
        )
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
    """The U-Net: with fresh weights from torch's global stream (`scratch`), or with its own (`pretrained`).

    Its config, which pipelines read, records the side of the latents that it will see.

    Raises:
        ValueError: If a weight is missing.
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
    encoder = _whole("text_encoder", CLIPTextModel.from_pretrained(directory / "text_encoder", **HOW))
    return ClipText(CLIPTokenizer.from_pretrained(directory / "tokenizer"), encoder, precision=precision)


def load_chain(directory: Path) -> Ddpm:
    """The noising chain, and what is predicted of it; ValueError if this version does not know it."""
    config: dict[str, Any] = CHAIN | dict(DDIMScheduler.load_config(directory, subfolder="scheduler"))
    name, ends = config["beta_schedule"], {key: config[key] for key in ("beta_start", "beta_end")}
    if BETAS.get(name) != ends or config["trained_betas"] is not None or config["rescale_betas_zero_snr"]:
        raise ValueError(f"beta_schedule={name} in scheduler_config.json, {ends}: known are {BETAS}")
    prediction = config["prediction_type"]
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction_type={prediction} in scheduler_config.json: known are {', '.join(PREDICTIONS)}")
    return Ddpm(config["num_train_timesteps"], betas=name, prediction=prediction)


def _whole(part: str, loaded: Any) -> Any:
    """A loaded model in float32, none of whose weights the libraries had to invent."""
    model, about = loaded
    missing = sorted(about["missing_keys"])
    if missing:
        raise ValueError(f"pretrained: {len(missing)} weights of {part} are not in its file, {missing[0]} among them")
    return model.float()


def _from_hub(pretrained: str, files: tuple[str, ...]) -> Path:
    """The snapshot of a hub id, from the cache or downloaded."""
    if pretrained.count("/") != 1 or pretrained.startswith((".", "/", "~")):
        raise ValueError(f"pretrained={pretrained}: no such directory (diffusers' layout), and no hub id OWNER/NAME")
    try:
        return Path(snapshot_download(pretrained, allow_patterns=[*files, "tokenizer/*"]))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"pretrained={pretrained} is not a directory, and the Hugging Face hub does not give it "
            f"({type(error).__name__}); where there is a network run: hf download {pretrained} "
            f"--include {' '.join(files)} 'tokenizer/*' --local-dir DIR, and use pretrained=DIR"
        ) from None
