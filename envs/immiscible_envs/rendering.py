"""Pictures of PushT and Avoid: the 512 x 512 canvas drawn with pygame, resized bilinearly.

The colours, outlines and rounding are those of the published PushT, so that a picture of a recorded state is the
recorded image to a fraction of a grey level. Only a window needs a display.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from weakref import WeakSet

import numpy as np
from numpy.typing import ArrayLike, NDArray

from immiscible_envs import avoid
from immiscible_envs.checks import finite
from immiscible_envs.geometry import BAR, GOAL_POSE, STEM, Array, place
from immiscible_envs.simulation import AGENT_RADIUS, WALL_CORNERS, WALL_RADIUS, WORKSPACE

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
import pygame  # noqa: E402

Image = NDArray[np.uint8]
Pixel = tuple[int, int]
Color = tuple[int, int, int]

CANVAS = int(WORKSPACE)
BACKGROUND: Color = (255, 255, 255)
AGENT_COLOR: Color = (65, 105, 225)  # RoyalBlue
BLOCK_COLOR: Color = (119, 136, 153)  # LightSlateGray
GOAL_COLOR: Color = (144, 238, 144)  # LightGreen
WALL_COLOR: Color = (211, 211, 211)  # LightGray
OUTLINE = 2  # px, half the width of the block's outline
RIM = 4  # px, width of the dark rim of a disc
TEXT, LINE = 22, 28  # px, height of the text and of a line of it
TEXT_COLOR: Color = (26, 29, 33)


def render_state(state: ArrayLike, goal_pose: ArrayLike = GOAL_POSE, size: int = 96) -> Image:
    """Draw a state (5,) and a goal (3,) as (size, size, 3) uint8, RGB, row by row from the top; 512 is the canvas.

    Raises ValueError if the size is less than 1 or the state is not five finite numbers.
    """
    if size < 1:
        raise ValueError(f"size {size} must be at least 1")
    values = finite(state, (5,), "state")
    canvas = pygame.Surface((CANVAS, CANVAS), depth=24)
    canvas.fill(BACKGROUND)
    for part in (BAR, STEM):
        pygame.draw.polygon(canvas, GOAL_COLOR, _pixels(place(part, goal_pose)))
    for part in (BAR, STEM):
        corners = _pixels(place(part, values[2:]))
        pygame.draw.polygon(canvas, _lighter(BLOCK_COLOR), corners)
        _draw_outline(canvas, corners, OUTLINE, BLOCK_COLOR)
    _draw_disc(canvas, values[:2], AGENT_RADIUS, AGENT_COLOR)
    _draw_outline(canvas, _pixels(np.array(WALL_CORNERS)), round(WALL_RADIUS), WALL_COLOR)
    return resize(pygame.surfarray.pixels3d(canvas).transpose(1, 0, 2), size)


def render_plane(position: ArrayLike, size: int = 96) -> Image:
    """Draw Avoid with its agent at a position (2,) as (size, size, 3) uint8, as `render_state` draws PushT.

    Raises ValueError if the size is less than 1 or the position is not two finite numbers.
    """
    if size < 1:
        raise ValueError(f"size {size} must be at least 1")
    middle = finite(position, (2,), "position")
    canvas = pygame.Surface((CANVAS, CANVAS), depth=24)
    canvas.fill(BACKGROUND)
    canvas.fill(GOAL_COLOR, (0, 0, CANVAS, round(avoid.FAR)))
    for pillar in avoid.PILLARS:
        _draw_disc(canvas, pillar, avoid.PILLAR_RADIUS, BLOCK_COLOR)
    _draw_disc(canvas, middle, avoid.AGENT_RADIUS, AGENT_COLOR)
    return resize(pygame.surfarray.pixels3d(canvas).transpose(1, 0, 2), size)


def resize(image: Image, size: int) -> Image:
    """Resize a square image (S, S, 3) uint8 bilinearly, sampled at pixel centres without smoothing first.

    The arithmetic is the fixed-point one (weights in 1/2048) of OpenCV's INTER_LINEAR, with which the
    recorded images were made; so even areas and straight walls come out exactly alike.
    """
    if size == image.shape[0]:
        return image.copy(order="C")
    taps, weights = _taps(image.shape[0], size)
    around = image[np.ix_(taps, taps)].astype(np.int32).reshape(2, size, 2, size, 3)
    left, right = weights[:, None, :, None]
    across = around[:, :, 0] * left + around[:, :, 1] * right
    top, bottom = weights[:, :, None, None]
    down = (top * (across[0] >> 4) >> 16) + (bottom * (across[1] >> 4) >> 16)
    return (down + 2 >> 2).astype(np.uint8)


def with_text(image: Image, lines: Sequence[str]) -> Image:
    """A picture (H, W, 3) with lines of text below it, each LINE pixels high."""
    pygame.font.init()
    font, width = pygame.font.Font(None, TEXT), image.shape[1]
    canvas = pygame.Surface((width, LINE * len(lines)), depth=24)
    canvas.fill(BACKGROUND)
    for row, line in enumerate(lines):
        canvas.blit(font.render(line, True, TEXT_COLOR), (LINE // 2, row * LINE + (LINE - TEXT) // 2))
    return np.concatenate([image, pygame.surfarray.pixels3d(canvas).transpose(1, 0, 2)])


def open_display(size: tuple[int, int], title: str = "PushT") -> pygame.Surface:
    """Open a window of a width and height [px]; return its surface. `pygame.display.quit` closes it.

    Where SDL finds no display it draws into the void: an OSError here, unless SDL_VIDEODRIVER asks for it.
    """
    try:
        pygame.display.init()
        if pygame.display.get_driver() in ("offscreen", "dummy") and not os.environ.get("SDL_VIDEODRIVER"):
            raise pygame.error("SDL found none")
        pygame.display.set_caption(title)
        return pygame.display.set_mode(size)
    except pygame.error as error:
        pygame.display.quit()
        raise OSError(f"there is no display to open a window on; run it in a desktop session ({error})") from error


class Window:
    """A pygame window for pictures of a width and height [px]; `close` may be called more than once.

    pygame has one window per process: several show their pictures in it in turn, and the last that closes closes it.

    Raises OSError if there is no display.
    """

    _open: WeakSet[Window] = WeakSet()

    def __init__(self, title: str = "PushT", size: Pixel = (CANVAS, CANVAS)) -> None:
        self._screen: pygame.Surface | None = open_display(size, title)
        self._clock = pygame.time.Clock()
        Window._open.add(self)

    def show(self, image: Image, rate: float) -> None:
        """Show a picture (height, width, 3), then wait until 1/rate seconds have passed since the last one."""
        if self._screen is None:
            raise ValueError("the window is closed; open a new one")
        pygame.surfarray.blit_array(self._screen, image.transpose(1, 0, 2))
        pygame.display.flip()
        pygame.event.pump()
        self._clock.tick(rate)

    def close(self) -> None:
        """Close the window."""
        if self._screen is not None:
            self._screen = None
            Window._open.discard(self)
            if not Window._open:
                pygame.display.quit()


def _draw_disc(canvas: pygame.Surface, middle: Array, radius: float, color: Color) -> None:
    """Draw a disc with a dark rim."""
    (center,) = _pixels(middle[None])
    pygame.draw.circle(canvas, color, center, round(radius))
    pygame.draw.circle(canvas, _lighter(color), center, round(radius) - RIM)


def _draw_outline(canvas: pygame.Surface, corners: list[Pixel], radius: int, color: Color) -> None:
    """Draw a polygon's sides with round ends, as wide as two radii."""
    for start, end in pairwise([*corners, corners[0]]):
        pygame.draw.line(canvas, color, start, end, 2 * radius)
        length = math.dist(start, end)
        x = round(radius * abs(end[1] - start[1]) / length)
        y = round(radius * abs(end[0] - start[0]) / length)
        at_start, at_end = ([(px - x, py - y), (px + x, py + y)] for px, py in (start, end))
        pygame.draw.polygon(canvas, color, at_start + at_end[::-1])
        pygame.draw.circle(canvas, color, start, radius)
        pygame.draw.circle(canvas, color, end, radius)


def _pixels(points: Array) -> list[Pixel]:
    return [(round(x), round(y)) for x, y in points.tolist()]


def _lighter(color: Color) -> Color:
    red, green, blue = (min(round(1.2 * value), 255) for value in color)
    return red, green, blue


@cache
def _taps(source: int, target: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Where target pixels look: indices (2 * target,), near before far, and their weights (2, target) in 1/2048."""
    centers = np.clip((np.arange(target) + 0.5) * (source / target) - 0.5, 0, source - 1)
    near = np.floor(centers).astype(np.int64)
    far_weight = np.rint((centers - near) * 2048).astype(np.int32)
    return np.concatenate([near, np.minimum(near + 1, source - 1)]), np.stack([2048 - far_weight, far_weight])
