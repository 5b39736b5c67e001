"""Tiles lie where they should, finished episodes stand still, and a video holds what was drawn."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import imageio.v3 as imageio
import numpy as np
import pytest
from PIL import Image

from immiscible_envs.rendering import pygame
from immiscible_policy.evaluation.recording import Recorder, Recording
from immiscible_policy.results.video import (
    GREEN,
    Frame,
    LiveWindow,
    WindowClosed,
    draw_tile,
    encode_gif,
    frames,
    tile,
    write_video,
)
from immiscible_policy.tasks import find_task

PUSHT = find_task("pusht")
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
    going, won = (draw_tile(PUSHT, STATE, "start 100", 128, won) for won in (False, True))
    other = draw_tile(PUSHT, STATE, "start 101", 128, False)
    assert going.shape == (142, 128, 3) and going.dtype == np.uint8
    assert green(won) and not green(going)
    assert not np.array_equal(going[:14], other[:14]) and np.array_equal(going[14:], other[14:])
    assert np.array_equal(going[20:-6, 6:-6], won[20:-6, 6:-6])


def recorded(n_steps: int = 6) -> Recording:
    """Three episodes that move on when done: success after 2 steps, failure at the end, success after 4."""
    recorder, ends = Recorder(PUSHT), np.array([2, n_steps, 4])
    for step in range(n_steps + 1):
        states = STATE + 5 * step * np.arange(1, 4)[:, None]
        recorder.on_step(step, states, {"coverage": np.array([0.1, 0.3, 0.2]) * (1 + min(step, 2))}, step >= ends)
    rows = [SimpleNamespace(start=100 + i, metrics={"success": i != 1}, steps=end) for i, end in enumerate(ends)]
    return recorder.recording(rows)


def test_finished_tiles_freeze_and_success_is_framed() -> None:
    pictures = list(frames(PUSHT, recorded(), columns=3, size=64))
    assert len(pictures) == 7 and pictures[0].shape == (64 + 14, 3 * 64, 3)
    tiles = np.stack([np.split(picture, 3, axis=1) for picture in pictures])
    assert [[green(item) for item in row] for row in tiles] == [[t >= 2, False, t >= 4] for t in range(7)]
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
    assert [item.name for item in path.parent.iterdir()] == ["video.mp4"]


def test_a_gif_has_the_pictures_their_time_and_repeats(tmp_path: Path) -> None:
    moving = [plain(255) for _ in range(4)]
    for place, picture in enumerate(moving):
        picture[10 * place : 10 * place + 10] = (65, 105, 225)  # one of the colours that the environment draws in
    assert write_video(tmp_path / "video.gif", moving, fps=20) == 4
    decoded = imageio.imread(tmp_path / "video.gif")
    assert np.abs(decoded[..., :3].astype(int) - np.stack(moving)).max() <= 2
    with Image.open(tmp_path / "video.gif") as gif:
        assert gif.info["duration"] == 50 and gif.info["loop"] == 0
    with pytest.raises(ValueError, match="no picture"):
        write_video(tmp_path / "none.gif", [], fps=10)


def test_odd_sides_are_made_even(tmp_path: Path) -> None:
    write_video(tmp_path / "video.mp4", [plain(100, (33, 47))] * 2, fps=10)
    assert imageio.imread(tmp_path / "video.mp4", plugin="FFMPEG").shape == (2, 34, 48, 3)


def test_a_broken_video_leaves_nothing_and_keeps_the_old_one(tmp_path: Path) -> None:
    def breaking() -> Iterator[Frame]:
        yield plain(1)
        raise RuntimeError("power cut")

    (tmp_path / "video.mp4").write_bytes(b"old")
    with pytest.raises(RuntimeError, match="power cut"):
        write_video(tmp_path / "video.mp4", breaking(), fps=10)
    with pytest.raises(ValueError, match="no picture"):
        write_video(tmp_path / "video.mp4", [], fps=10)
    assert [item.name for item in tmp_path.iterdir()] == ["video.mp4"]
    assert (tmp_path / "video.mp4").read_bytes() == b"old"


@pytest.mark.parametrize("size", (64, 96, 128, 256))
def test_the_text_of_a_tile_fits_into_it(size: int) -> None:
    drawn = draw_tile(PUSHT, STATE, "start 100000   coverage 0.00", size, False)
    assert (drawn[: max(14, size // 11), -5:] == 255).all()


def test_some_frames_end_with_the_last_scene() -> None:
    every, third = (list(frames(PUSHT, recorded(), columns=3, size=64, every=count)) for count in (1, 3))
    assert len(third) == 3 and np.array_equal(third[0], every[0])
    assert green(np.split(third[1], 3, axis=1)[0]) and green(np.split(third[2], 3, axis=1)[2])
    for count in (4, 5, 9):  # which pass by the last of seven
        assert np.array_equal(list(frames(PUSHT, recorded(), columns=3, size=64, every=count))[-1], every[-1])


def test_a_live_window_shows_each_step_and_ends_when_it_is_closed() -> None:
    metrics = {"coverage": np.array([0.5, 0.96]), "success": np.array([0.0, 1.0])}
    with LiveWindow(PUSHT, [3, 4], columns=2, size=64, fps=1000) as window:
        seen = []
        for step, done in enumerate(([False, False], [False, True], [True, True])):
            scenes = np.stack([STATE + 5 * step] * 2)
            window.on_step(step, scenes, metrics, np.array(done))
            shown = pygame.surfarray.array3d(pygame.display.get_surface()).swapaxes(0, 1)
            seen.append(np.split(shown, 2, axis=1))
        assert [[green(item) for item in row] for row in seen] == [[False, False], [False, True], [False, True]]
        assert np.array_equal(seen[1][1], seen[2][1]) and not np.array_equal(seen[1][0], seen[2][0])
        pygame.event.post(pygame.event.Event(pygame.QUIT))
        with pytest.raises(WindowClosed):
            window.on_step(3, scenes, metrics, np.array([True, True]))
    assert not pygame.display.get_init()


def test_a_recording_holds_finished_episodes_and_the_score_so_far() -> None:
    result = recorded()
    assert result.scenes.shape == (7, 3, 5) and list(result.starts) == [100, 101, 102]
    assert (result.scenes[2:, 0] == result.scenes[2, 0]).all() and (result.scenes[1, 0] != result.scenes[2, 0]).any()
    assert len({tuple(state) for state in result.scenes[:, 1]}) == 7
    assert result.scores[-1] == pytest.approx([0.3, 0.9, 0.6])


def test_a_recording_misses_no_step() -> None:
    with pytest.raises(ValueError, match="step 1 came after 0 reports"):
        Recorder(PUSHT).on_step(1, STATE[None], {"coverage": np.zeros(1)}, np.zeros(1, bool))


@pytest.mark.parametrize("fps", [10, 15, 24, 30, 50, 60, 80, 100, 160])
def test_a_gif_runs_at_the_pace_that_it_was_given(fps):
    """A viewer shows a time below 20 ms as 100 ms."""
    moving = np.full((100, 100, 8, 3), 255, np.uint8)
    moving[np.arange(100), np.arange(100)] = (65, 105, 225)  # one line, a pixel further down in each picture
    content, count = encode_gif(moving, fps)
    times = []
    with Image.open(BytesIO(content)) as gif:
        for index in range(gif.n_frames):
            gif.seek(index)
            times.append(gif.info["duration"])
        last = np.asarray(gif.convert("RGB"))
    assert min(times) >= 20 and sum(times) == pytest.approx(1000 * 100 / fps, abs=20)
    assert (last[:99] > 250).all() and (last[99, :, 0] < 70).all()
    assert count == len(times) and (count == 100 or fps > 50)


def test_a_gif_keeps_the_colours_of_its_last_frame(tmp_path):
    """A frame that turns green at success stays green."""
    grey, green = (np.full((16, 16, 3), colour, np.uint8) for colour in ([95, 95, 95], [40, 160, 60]))
    content, count = encode_gif([grey, grey, green], 10)
    with Image.open(BytesIO(content)) as shown:
        shown.seek(shown.n_frames - 1)
        last = np.asarray(shown.convert("RGB"))
    assert count == 3 and np.abs(last.astype(int) - green).max() < 8
