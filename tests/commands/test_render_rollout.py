"""Tiles lie where they should, finished episodes stand still, and a video holds what was drawn."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest

from immiscible_envs.geometry import GOAL_POSE
from immiscible_policy.commands import render_rollout as video
from immiscible_policy.commands.render_rollout import (
    GREEN,
    Frame,
    Recorder,
    Recording,
    draw_tile,
    frames,
    main,
    show_window,
    tile,
    write_video,
)
from immiscible_policy.evaluation.agent import spec_metadata
from immiscible_policy.evaluation.rollout import evaluate
from immiscible_policy.policy.build import PolicySpec, build_policy
from immiscible_policy.store.checkpoint import save_checkpoint
from immiscible_policy.store.rows import EpisodeRow

STATE = np.array([256.0, 400.0, 200.0, 200.0, 0.3])


def green(picture: Frame) -> bool:
    return bool((picture == GREEN).all(-1).any())


def plain(value: int, shape: tuple[int, int] = (48, 64)) -> Frame:
    return np.full((*shape, 3), value, dtype=np.uint8)


def test_tiles_lie_in_reading_order() -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (5, 4, 6, 3), dtype=np.uint8)
    grid = tile(pictures, columns=3)
    assert grid.shape == (8, 18, 3) and grid.dtype == np.uint8
    for index in range(5):
        row, column = divmod(index, 3)
        assert np.array_equal(grid[4 * row : 4 * row + 4, 6 * column : 6 * column + 6], pictures[index])
    assert (grid[4:, 12:] == 255).all()
    assert np.array_equal(tile(pictures[:1], columns=3), pictures[0])


@pytest.mark.parametrize("count, columns", [(0, 3), (3, 0)])
def test_an_empty_grid_is_refused(count: int, columns: int) -> None:
    with pytest.raises(ValueError, match="at least one of each"):
        tile(np.zeros((count, 4, 4, 3), np.uint8), columns)


def test_a_tile_shows_scene_label_and_success() -> None:
    going = draw_tile(STATE, GOAL_POSE, "start 100000", False, 128)
    won = draw_tile(STATE, GOAL_POSE, "start 100000", True, 128)
    other = draw_tile(STATE, GOAL_POSE, "start 100001", False, 128)
    assert going.shape == (142, 128, 3) and going.dtype == np.uint8
    assert green(won) and not green(going)
    assert not np.array_equal(going[:14], other[:14]) and np.array_equal(going[14:], other[14:])
    assert np.array_equal(going[20:-6, 6:-6], won[20:-6, 6:-6])


def recorded(n_steps: int = 6) -> Recording:
    """Three episodes that move on when done: success after 2 steps, failure at the end, success after 4."""
    recorder, ends = Recorder(), np.array([2, n_steps, 4])
    for step in range(n_steps + 1):
        states = STATE + 5 * step * np.arange(1, 4)[:, None]
        recorder.on_step(step, states, np.array([0.1, 0.3, 0.2]) * (1 + step % 3), step >= ends)
    rows = [EpisodeRow(500, 100 + i, 0, {"success": float(i != 1)}, int(end)) for i, end in enumerate(ends)]
    return recorder.recording(rows)


def test_a_recording_holds_finished_episodes_and_the_best_coverage() -> None:
    found = recorded()
    assert found.states.shape == (7, 3, 5) and list(found.starts) == [100, 101, 102]
    assert (found.states[2:, 0] == found.states[2, 0]).all() and (found.states[1, 0] != found.states[2, 0]).any()
    assert len({tuple(state) for state in found.states[:, 1]}) == 7
    assert np.diff(found.coverage, axis=0).min() == 0
    assert found.coverage[-1] == pytest.approx([0.3, 0.9, 0.6])


def test_a_recording_misses_no_step() -> None:
    with pytest.raises(ValueError, match="step 1 came after 0 reports"):
        Recorder().on_step(1, STATE[None], np.zeros(1), np.zeros(1, bool))


def test_finished_tiles_freeze_and_success_is_framed() -> None:
    pictures = list(frames(recorded(), columns=3, size=64))
    assert len(pictures) == 7 and pictures[0].shape == (64 + 14, 3 * 64, 3)
    tiles = np.stack([np.split(picture, 3, axis=1) for picture in pictures])
    assert [[green(each) for each in row] for row in tiles] == [[t >= 2, False, t >= 4] for t in range(7)]
    assert (tiles[2:, 0] == tiles[2, 0]).all() and (tiles[4:, 2] == tiles[4, 2]).all()
    assert all((tiles[t, 1] != tiles[t + 1, 1]).any() for t in range(6))


def test_a_video_decodes_to_what_was_written(tmp_path: Path) -> None:
    shades = [20, 90, 160, 230]
    path = tmp_path / "new" / "video.mp4"
    assert write_video(path, (plain(shade) for shade in shades), fps=10) == 4
    decoded = imageio.imread(path, plugin="FFMPEG")
    assert decoded.shape == (4, 48, 64, 3)
    assert [picture.mean() for picture in decoded] == pytest.approx(shades, abs=3)
    assert imageio.immeta(path, plugin="FFMPEG")["fps"] == 10
    assert [each.name for each in path.parent.iterdir()] == ["video.mp4"]


def test_odd_sides_are_made_even(tmp_path: Path) -> None:
    write_video(tmp_path / "video.mp4", [plain(100, (33, 47))] * 2)
    assert imageio.imread(tmp_path / "video.mp4", plugin="FFMPEG").shape == (2, 34, 48, 3)


def test_a_broken_video_leaves_nothing_and_keeps_the_old_one(tmp_path: Path) -> None:
    def breaking() -> Iterator[Frame]:
        yield plain(1)
        raise RuntimeError("power cut")

    (tmp_path / "video.mp4").write_bytes(b"old")
    with pytest.raises(RuntimeError, match="power cut"):
        write_video(tmp_path / "video.mp4", breaking())
    with pytest.raises(ValueError, match="no picture"):
        write_video(tmp_path / "video.mp4", [])
    assert [each.name for each in tmp_path.iterdir()] == ["video.mp4"]
    assert (tmp_path / "video.mp4").read_bytes() == b"old"


def test_a_window_plays_without_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "SDL_VIDEODRIVER", "dummy")
    played = []
    show_window((played.append(shade) or plain(shade) for shade in (1, 2, 3)), fps=1000)
    assert played == [1, 2, 3]


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "checkpoint= is missing"),
        (["checkpoint={absent}"], "is no checkpoint"),
        (["checkpoint={absent}", "out=a.gif"], "must end in .mp4"),
        (["checkpoint={absent}", "columns=0"], "columns=0"),
        (["checkpoint={absent}", "size=5"], "size=5"),
        (["checkpoint={absent}", "view=film"], "use mp4 or human"),
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
    spec = PolicySpec(
        obs="keypoints",
        obs_dim=20,
        action_dim=2,
        horizon=16,
        obs_steps=2,
        action_steps=8,
        diffusion_steps=100,
        data_scale=1.0,
        down_dims=(8, 16),
        step_embed_dim=8,
        kernel_size=3,
        groups=4,
    )
    weights = build_policy(spec).state_dict()
    path = tmp_path / "step_000500"
    save_checkpoint(path, spec_metadata(spec) | {"step": 500, "seed": 0}, {"model": weights, "ema": weights})
    return path


def test_an_unknown_sampler_is_refused_before_a_video_is_made(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="sampler=euler"):
        main([f"checkpoint={checkpoint}", f"out={checkpoint.parent / 'a.mp4'}", "sampler=euler"])
    assert not (checkpoint.parent / "a.mp4").exists()


def test_the_command_renders_a_checkpoint(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(video, "evaluate", partial(evaluate, max_steps=5, batch_size=3))
    out = checkpoint.parent / "rollout.mp4"
    words = [f"checkpoint={checkpoint}", f"out={out}", "starts=100000..100002", "columns=2", "size=64"]
    assert main([*words, "sampling_steps=1"]) == 0
    assert imageio.imread(out, plugin="FFMPEG").shape == (6, 2 * 78, 2 * 64, 3)
    printed = capsys.readouterr().out
    assert "start 100002: no success after 5 steps" in printed and "6 frames in" in printed
