"""CLIPScore (Hessel et al., 2021): how well an image shows what its prompt says.

score = 100 max(cos(image embedding, text embedding), 0) per image, averaged over images, as torchmetrics scales it; the
paper's own factor is 2.5, its values range from 0 to 2.5.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from immiscible_policy.cli import one_line
from immiscible_policy.image.data import Images


class ClipScore:
    """Scores images by a CLIP model of transformers, a directory or hub id; ValueError if it is not there.

    `weights` is the SHA-256 over the names and bytes of its tensors.
    """

    def __init__(self, source: str, device: str = "cpu") -> None:
        try:
            import transformers
        except ImportError:
            raise ValueError("clip= needs transformers: pip install transformers") from None
        place = Path(source)
        if not place.is_dir() and (place.parent.is_dir() or source.count("/") != 1):  # a hub id is OWNER/NAME
            raise ValueError(f"clip={source}: there is no such directory")
        try:
            model: Any = transformers.CLIPModel.from_pretrained(source, use_safetensors=True)
            self.tokenizer: Any = transformers.CLIPTokenizer.from_pretrained(source)
            self.processor: Any = image_processor().from_pretrained(source)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"clip={source} is neither a directory nor the hub id of a CLIP model with safetensors weights, "
                f"tokenizer and processor ({one_line(error)})"
            ) from None
        weights = hashlib.sha256()
        for name, tensor in sorted(model.state_dict().items()):
            weights.update(name.encode())
            weights.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        self.weights = weights.hexdigest()
        self.model = model.to(device).eval()
        self.source, self.device = source, device

    @torch.no_grad()
    def scores(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """CLIPScore (B,) of images (B, 3, S, S), uint8, with a prompt each (or ValueError), cut to 77 tokens."""
        if len(images) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts for {len(images)} images; CLIPScore needs one for each")
        length = self.model.config.text_config.max_position_embeddings
        words = self.tokenizer(list(prompts), padding=True, truncation=True, max_length=length, return_tensors="pt")
        views = self.processor(images=list(images.cpu()), return_tensors="pt")
        embedded = self.model(**words.to(self.device), **views.to(self.device))
        return clip_scores(embedded.image_embeds, embedded.text_embeds).cpu()


def image_processor() -> Any:
    """The class that prepares images for CLIP with Pillow, as published, with or without torchvision."""
    import transformers

    return getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor


class RealScores(NamedTuple):
    """Mean CLIPScores of real images with their own prompts, and with other images' prompts."""

    own: float
    others: float


def real_scores(clip: ClipScore, images: Images, n: int, batch_size: int) -> RealScores:
    """Between what CLIPScores lie: those of the first n images, each with its own prompt and with the next one's.

    ValueError as `scores`, or if the set has no prompts.
    """
    own: list[Tensor] = []
    others: list[Tensor] = []
    for rows in torch.arange(min(n, len(images))).split(batch_size):
        pixels, following = images.pixels(rows), (rows + 1) % len(images)
        own.append(clip.scores(pixels, images.prompts(rows) or []))
        others.append(clip.scores(pixels, images.prompts(following) or []))
    return RealScores(float(torch.cat(own).mean()), float(torch.cat(others).mean()))


def clip_scores(images: Tensor, texts: Tensor) -> Tensor:
    """100 max(cos, 0) of rows of image and text embeddings (B, E): (B,)."""
    return 100 * torch.nn.functional.cosine_similarity(images, texts).clamp(min=0)
