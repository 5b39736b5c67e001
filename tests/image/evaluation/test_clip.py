"""CLIPScore by hand, and on CLIP's real classes at a tiny size with random weights."""

import shutil

import pytest
import torch

from immiscible_policy.image.evaluation.clip import ClipScore, clip_scores

transformers = pytest.importorskip("transformers")


def test_score_by_hand():
    """Along each other, at 60 degrees, across, against."""
    images = torch.tensor([[2.0, 0.0], [1.0, 3.0**0.5], [0.0, 1.0], [-1.0, 0.0]])
    texts = torch.tensor([[5.0, 0.0]]).expand(4, 2)
    torch.testing.assert_close(clip_scores(images, texts), torch.tensor([100.0, 50.0, 0.0, 0.0]), rtol=1e-5, atol=1e-4)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    from immiscible_policy.image.tiny import write_tokenizer

    directory = tmp_path_factory.mktemp("clip")
    tokens = write_tokenizer(directory / "tokenizer", ["cat", "dog"])
    for file in (directory / "tokenizer").iterdir():
        file.rename(directory / file.name)
    common = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = {"vocab_size": tokens, "bos_token_id": tokens - 2, "eos_token_id": tokens - 1, "pad_token_id": tokens - 1}
    config = transformers.CLIPConfig(
        text_config=common | words, vision_config=common | {"image_size": 16, "patch_size": 8}, projection_dim=8
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.CLIPModel(config).save_pretrained(directory)
    transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(
        directory
    )
    return directory


def test_scores_are_the_cosines_of_the_models_embeddings(tiny):
    scorer = ClipScore(str(tiny))
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    result = scorer.scores(images, ["cat", "dog", "cat " * 100])
    views = scorer.processor(images=list(images), return_tensors="pt")["pixel_values"]
    words = scorer.tokenizer(
        ["cat", "dog", "cat " * 100], padding=True, truncation=True, max_length=77, return_tensors="pt"
    )
    with torch.no_grad():
        seen = scorer.model.visual_projection(scorer.model.vision_model(pixel_values=views).pooler_output)
        read = scorer.model.text_projection(scorer.model.text_model(**words).pooler_output)
    by_hand = [100 * max(0.0, float(a @ b / (a.norm() * b.norm()))) for a, b in zip(seen, read, strict=True)]
    torch.testing.assert_close(result, torch.tensor(by_hand), rtol=1e-4, atol=1e-3)


def test_models_of_one_name_are_told_apart_by_their_weights(tiny, tmp_path):
    other = tmp_path / tiny.name
    shutil.copytree(tiny, other)
    model = transformers.CLIPModel.from_pretrained(other)
    with torch.no_grad():
        model.logit_scale += 1
    model.save_pretrained(other)
    weights = [ClipScore(str(path)).weights for path in (tiny, tiny, other)]
    assert weights[0] == weights[1] != weights[2] and len(weights[0]) == 64


def test_each_image_needs_a_prompt(tiny):
    with pytest.raises(ValueError, match="1 prompts for 2 images"):
        ClipScore(str(tiny)).scores(torch.zeros(2, 3, 16, 16, dtype=torch.uint8), ["cat"])


def test_what_is_no_model_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"^clip=.* is neither a directory nor the hub id of a CLIP model"):
        ClipScore(str(tmp_path))


@pytest.mark.parametrize("place", ["absent", "there/absent", "a/b/absent"])
def test_a_directory_that_is_not_there_is_not_looked_for_elsewhere(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match=f"^clip={place}: there is no such directory$"):
        ClipScore(place)
