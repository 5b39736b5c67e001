"""The one way a measurement is written: NAME.json with its origin, NAME.md and NAME.png beside each other."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from immiscible_policy.provenance import provenance, without_places
from immiscible_policy.store.atomic import write_atomically


def origin_here() -> dict[str, Any]:
    """Command (without the directories of its files), commit, hardware and versions of this process."""
    origin = provenance()
    return origin | {"command": without_places(origin["command"])}


def write_result(
    path: Path,
    figures: Mapping[str, Any],
    text: str,
    picture: Figure | None = None,
    *,
    origin: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write a result, each file atomically, and return the files, which are called `path` with a suffix each.

    `figures` are measured numbers and their settings, where infinite or unknown ones become null; `text` is Markdown;
    `origin` is what `origin_here` returned before the measurement, by default what it returns now.
    """
    files = {".json": as_json(figures, origin), ".md": f"{text.strip()}\n".encode()}
    if picture is not None:
        files[".png"] = png(picture)
    for suffix, content in files.items():
        write_atomically(path.with_name(path.name + suffix), content)
    return [path.with_name(path.name + suffix) for suffix in files]


def as_json(figures: Mapping[str, Any], origin: Mapping[str, Any] | None = None) -> bytes:
    """A result as JSON, its origin first; arguments as `write_result`."""
    record = finite({**(origin_here() if origin is None else origin), **figures})
    return (json.dumps(record, indent=2, allow_nan=False) + "\n").encode()


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    write_atomically(path, png(figure))


def png(figure: Figure) -> bytes:
    """A figure as PNG; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def finite(content: Any) -> Any:
    """The same content with None for numbers that JSON does not have."""
    if isinstance(content, Mapping):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
