"""Prompts to embeddings: CLIP's tokenizer and text encoder, frozen.

Shape legend: B prompts, L tokens (77), E numbers per token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from immiscible_policy.image.model import Text

CHUNK = 256
"""Prompts that are encoded at a time."""


class ClipText:
    """Embeds prompts as Stable Diffusion does: padded or cut to L tokens, the last layer's states.

    It is not a `torch.nn.Module`, so that a model may hold it without training or saving it.
    """

    def __init__(self, tokenizer: CLIPTokenizer, encoder: CLIPTextModel, *, precision: str) -> None:
        self.tokenizer = tokenizer
        self.encoder = encoder.eval().requires_grad_(False)
        self.precision = precision
        self._tokens([""])  # fixes padding and length; later calls change nothing in it, whatever thread they come from

    def __call__(self, prompts: Sequence[str]) -> Text:
        """Embed prompts, each distinct one once; float32, on the encoder's device."""
        distinct = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
        parts = [self._encode(part) for part in self._tokens(list(distinct)).split(CHUNK)]
        rows = torch.tensor([distinct[prompt] for prompt in prompts], device=self.encoder.device)
        return Text(*(torch.cat(field)[rows] for field in zip(*parts, strict=True)))

    def apply(self, change: Callable[[Tensor], Tensor]) -> None:
        """Apply what moves a module's tensors, as `torch.nn.Module.to` does."""
        self.encoder._apply(change)

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
