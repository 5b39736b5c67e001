"""The command that renders a checkpoint, and what it refuses."""

from functools import partial
from pathlib import Path

import imageio.v3 as imageio
import pytest

from immiscible_policy.commands import render_rollout
from immiscible_policy.commands.render_rollout import main
from immiscible_policy.evaluation.agent import spec_metadata
from immiscible_policy.evaluation.rollout import evaluate
from immiscible_policy.policy.build import build_policy
from immiscible_policy.store.checkpoint import save_checkpoint
from tests.small_policy import SPEC


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "checkpoint= is missing"),
        (["checkpoint={absent}"], "does not exist"),
        (["checkpoint={absent}", "out=a.avi"], "must end in .mp4 or .gif"),
        (["checkpoint={absent}", "speed=0"], "speed=0: use 0.1 to 10"),
        (["checkpoint={absent}", "columns=0"], "columns=0"),
        (["checkpoint={absent}", "size=5"], "size=5"),
        (["checkpoint={absent}", "view=film"], "use video or human"),
        (["checkpoint={absent}", "episodes=51"], "episodes=51"),
    ],
)
def test_mistakes_are_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        main([word.format(absent=tmp_path / "absent") for word in words])
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """An untrained policy of little size."""
    weights = build_policy(SPEC).state_dict()
    path = tmp_path / "step_000500"
    save_checkpoint(path, spec_metadata(SPEC) | {"step": 500, "seed": 0}, {"model": weights, "ema": weights})
    return path


def test_an_unknown_sampler_is_refused_before_a_video_is_made(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="solver=warp"):
        main([f"checkpoint={checkpoint}", f"out={checkpoint.parent / 'a.mp4'}", "sampler=warp"])
    assert not (checkpoint.parent / "a.mp4").exists()


def test_the_command_renders_a_checkpoint(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(render_rollout, "evaluate", partial(evaluate, max_steps=5, batch_size=3))
    out = checkpoint.parent / "rollout.mp4"
    words = [f"checkpoint={checkpoint}", f"out={out}", "starts=100000..100002", "columns=2", "size=64"]
    assert main([*words, "sampling_steps=1"]) is None
    assert imageio.imread(out, plugin="FFMPEG").shape == (6, 2 * 78, 2 * 64, 3)
    printed = capsys.readouterr().out
    assert main([*words, "sampling_steps=1", "view=human", "speed=10"]) is None
    assert capsys.readouterr().out == "".join(
        line for line in printed.splitlines(keepends=True) if "frames" not in line
    )
    assert "start 100002: no success after 5 steps" in printed and "6 frames in" in printed
