"""Small models with random weights in the place of those that LeRobot's policies download; runs where LeRobot is.

SmolVLA and the multi-task transformer take a directory where they take a model's name. pi0 and pi05 fix the sizes of
their networks and the name of their tokenizer, so `shrink_pi` patches both.
"""

from __future__ import annotations

from pathlib import Path

import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig, SmolVLMConfig

WIDTH, SIDE, PATCH = 16, 32, 16
IMAGE_TOKENS = {
    "fake_image_token": "<fake_token_around_image>",
    "image_token": "<image>",
    "global_image_token": "<global-img>",
}
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", *IMAGE_TOKENS.values(), "<end_of_utterance>")
PALIGEMMA = "google/paligemma-3b-pt-224"
LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {"vocab_size": 64, "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, **LAYERS}
VISION = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "image_size": SIDE, "patch_size": PATCH, **LAYERS}


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({token: i for i, token in enumerate(SPECIAL)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, **names, extra_special_tokens=IMAGE_TOKENS)


def write_clip(path: Path) -> Path:
    text, vision = CLIPTextConfig(**TEXT, projection_dim=WIDTH), CLIPVisionConfig(**VISION, projection_dim=WIDTH)
    transformers.CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict())).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


def write_smolvlm(path: Path) -> Path:
    text = TEXT | {"model_type": "llama", "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
    config = SmolVLMConfig(text_config=text, vision_config=VISION, scale_factor=2, image_token_id=5, pad_token_id=0)
    config.save_pretrained(path)
    pictures = transformers.SmolVLMImageProcessor(), tokenizer(), transformers.SmolVLMVideoProcessor()
    transformers.SmolVLMProcessor(*pictures, chat_template="").save_pretrained(path)
    return path


def shrink_pi(words: Path) -> None:
    """Make pi0 and pi05 small from now on; their tokenizer is read from `words`."""
    from lerobot.policies.pi0 import modeling_pi0
    from lerobot.policies.pi05 import modeling_pi05

    sizes = dict(width=WIDTH, depth=2, mlp_dim=2 * WIDTH, num_heads=8, num_kv_heads=1, head_dim=8)

    def small(kind):
        def build(config):
            text = getattr(config, "text_config", config)
            text.vocab_size, text.pad_token_id = 64, 0
            if hasattr(config, "vision_config"):
                config.vision_config.update(VISION | {"projection_dim": WIDTH})
                config.projection_dim, config.image_token_index, config._vocab_size = WIDTH, 5, 64
            return kind(config)

        return build

    for module in (modeling_pi0, modeling_pi05):
        module.get_gemma_config = lambda variant, module=module: module.GemmaConfig(**sizes)
        for name in ("PaliGemmaForConditionalGenerationWithPiGemma", "PiGemmaForCausalLM"):
            setattr(module, name, small(getattr(module, name)))
    tokenizer().save_pretrained(words)
    load = transformers.AutoTokenizer.from_pretrained
    transformers.AutoTokenizer.from_pretrained = lambda name, *args, **options: load(
        words if name == PALIGEMMA else name, *args, **options
    )


def small_options(folder: Path) -> dict[str, dict[str, object]]:
    """Options that make LeRobot's policies small, all but `diffusion`; what they need lies in the folder then."""
    clip, smolvlm = write_clip(folder / "clip"), write_smolvlm(folder / "smolvlm")
    shrink_pi(folder / "paligemma")
    dit = {"vision_encoder_name": str(clip), "text_encoder_name": str(clip), "tokenizer_max_length": 8,
           "image_crop_shape": (SIDE, SIDE), "hidden_dim": WIDTH, "num_layers": 2, "num_heads": 2,
           "timestep_embed_dim": 8, "horizon": 8, "n_action_steps": 4}  # fmt: skip
    chunk = {"chunk_size": 8, "n_action_steps": 4}
    pi = chunk | {"image_resolution": (SIDE, SIDE), "tokenizer_max_length": 8}
    return {
        "multi_task_dit": dit | {"objective": "diffusion"},
        "multi_task_dit flow": dit | {"objective": "flow_matching"},
        "smolvla": chunk | {"vlm_model_name": str(smolvlm), "num_vlm_layers": 2, "tokenizer_max_length": 8,
                            "resize_imgs_with_padding": (SIDE, SIDE)},
        "pi0": pi,
        "pi05": pi,
    }  # fmt: skip
