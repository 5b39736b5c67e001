"""The part that single environments share: a picture of what is going on, returned or shown in a window."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import gymnasium

from immiscible_envs.checks import one_of
from immiscible_envs.geometry import Array
from immiscible_envs.simulation import CONTROL_HZ

if TYPE_CHECKING:
    from immiscible_envs.rendering import Window

Seen = TypeVar("Seen")


class ShownEnv(gymnasium.Env[Seen, Array], Generic[Seen]):
    """An environment with a picture (512, 512, 3) uint8, and a window of its own in human mode.

    pygame is imported with the first picture.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "human"], "render_fps": CONTROL_HZ}
    title: ClassVar[str]  # of the window

    def __init__(self, render_mode: str | None) -> None:
        """Choose how to render; a ValueError if the mode is unknown."""
        if render_mode is not None:
            one_of(render_mode, tuple(self.metadata["render_modes"]), "render_mode")
        self.render_mode = render_mode
        self._window: Window | None = None
        self._is_shown = False  # by the step or the reset

    @abstractmethod
    def picture(self) -> Any:
        """The present state as a (512, 512, 3) uint8 picture."""

    def show(self) -> None:
        """In human mode, bring the window up to date; it opens at the first call."""
        if self.render_mode != "human":
            return
        from immiscible_envs.rendering import Window

        if self._window is None:
            self._window = Window(self.title)
        self._window.show(self.picture(), self.metadata["render_fps"])
        self._is_shown = True

    def render(self) -> Any:
        """The picture; in human mode it is shown in the window instead, unless the step has just done so."""
        if not self._is_shown:
            self.show()
        self._is_shown = False
        return self.picture() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Close the window, if there is one; may be called more than once."""
        if self._window is not None:
            self._window.close()
            self._window = None
