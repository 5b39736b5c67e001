"""One row per measured checkpoint, with everything that its value depends on: `frechet.csv` of each seed."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

from immiscible_policy.cli import one_line
from immiscible_policy.store.atomic import write_atomically

ROWS = "frechet.csv"
PARSERS: dict[str, Callable[[str], Any]] = {
    "int": int,
    "float": float,
    "str": str,
    "float | None": lambda text: float(text) if text else None,
}
"""How the values of an `ImageRow` are read, by the type of the column."""


@dataclass(frozen=True)
class ImageRow:
    """How good the images of one checkpoint are: squared Fréchet distance to the reference, and CLIPScore if wanted.

    `weights` (of the extractor) and `reference_hash` are the first 16 digits of a SHA-256; `resize` says how images
    come to the extractor's size, `sampling_steps` names steps and solver, or `best` for the model's own. `prompts` says
    what a file holds, `clip` which weights it has; `none` stands for no edit, no originals, prompts or CLIP model.
    """

    checkpoint: int
    seed: int
    distance: float
    clip_score: float | None
    n: int
    features: str
    weights: str
    dims: int
    resize: str
    reference: str
    split: str
    reference_hash: str
    reference_n: int
    size: int
    sampling_steps: str
    noise_seed: int
    edit: str
    originals: str
    prompts: str
    clip: str

    @property
    def unmeasured(self) -> ImageRow:
        """The row without what was measured: equal for equal checkpoints and settings."""
        return replace(self, distance=0.0, clip_score=None)

    @property
    def setting(self) -> ImageRow:
        """The settings alone: equal for all checkpoints that may be compared."""
        return replace(self.unmeasured, checkpoint=0, seed=0)


COLUMNS = [field.name for field in fields(ImageRow)]


def read_image_rows(path: Path) -> list[ImageRow]:
    """Read rows, none if there is no such file; ValueError if it is not a file of `write_image_rows`."""
    if not path.exists():
        return []
    try:
        header, *lines = list(csv.reader(io.StringIO(path.read_text()))) or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is damaged ({one_line(error)}); delete it, and measure again") from None
    if header != COLUMNS:
        raise ValueError(f"{path}: the first line is '{','.join(header)[:80]}', not '{','.join(COLUMNS)[:80]}...'")
    parsers, rows = [PARSERS[str(field.type)] for field in fields(ImageRow)], []
    for number, line in enumerate(lines, start=2):
        try:
            row = ImageRow(*(parse(value) for parse, value in zip(parsers, line, strict=True)))
            if not math.isfinite(row.distance):
                raise ValueError(f"distance={row.distance}")
            rows.append(row)
        except ValueError as error:
            where = f"{path}, line {number}"
            raise ValueError(f"{where} is damaged ('{','.join(line)[:80]}': {error}); remove that line") from None
    return rows


def write_image_rows(path: Path, rows: Sequence[ImageRow]) -> None:
    """Write rows, all of them or none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(["" if value is None else value for value in astuple(row)] for row in rows)
    write_atomically(path, text.getvalue().encode())


def settings(row: ImageRow) -> dict[str, object]:
    """What a value depends on besides its checkpoint, as JSON values."""
    measured = ("checkpoint", "seed", "distance", "clip_score")
    return {name: value for name, value in asdict(row).items() if name not in measured}
