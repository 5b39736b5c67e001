"""A replay store that grows by whole episodes: zarr v2 in the layout of the human demonstrations.

```
PATH.zarr/
    data/state       (T, 5)         agent x, y, block x, y, block angle before the step
    data/action      (T, 2)         commanded agent position
    data/keypoint    (T, 9, 2)      keypoints of the block in the same instant as state
    data/n_contacts  (T, 1)         contact points per substep of the step that the action made
    data/img         (T, 96, 96, 3) picture of the state, 0..255
    meta/episode_ends (E,)          row after the last one of each episode
```

An episode is in the store once `meta/episode_ends` names its end, which is written last and in one piece.
What an interrupted write left behind lies after that row and is overwritten by the next episode. The store
itself appears in one piece too, with arrays of no rows.
"""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

COLUMNS: dict[str, tuple[int, ...]] = {
    "state": (5,),
    "action": (2,),
    "keypoint": (9, 2),
    "n_contacts": (1,),
    "img": (96, 96, 3),
}
CHUNK_ROWS = 16
LEVEL = 1  # of compression; the fastest shrinks pictures of PushT 45-fold


class Recorder:
    """Appends episodes to a store; nothing is created before `create` or the first one."""

    def __init__(self, path: Path) -> None:
        """Open the store at `path`, or prepare to create it there.

        Raises:
            ValueError: If something else lies there.
        """
        self.path = path
        self._columns, self._ends = _arrays(path)
        if path.exists() and not all(array.is_ours() for array in [*self._columns.values(), self._ends]):
            raise ValueError(f"{path} is not a store that this recorder made; give a new path")

    @property
    def episode_ends(self) -> NDArray[np.int64]:
        """(E,) row after the last one of each episode."""
        return self._ends.read().astype(np.int64)

    def create(self) -> None:
        """Create the store, without an episode, or see that the one there can be written; `append` does so too.

        Raises:
            OSError: If it cannot be written.
        """
        if self.path.exists():
            return _write_groups(self.path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.path.parent, prefix=f".{self.path.name}.") as scratch:
            store = Path(scratch, "store")
            columns, ends = _arrays(store)
            for array in [*columns.values(), ends]:
                array.resize(0)
            _write_groups(store)
            store.rename(self.path)

    def append(self, episode: Mapping[str, ArrayLike]) -> None:
        """Add one episode.

        Args:
            episode: For every column, its rows (L, ...), L at least 1.

        Raises:
            ValueError: If a column is missing, unknown, or of another shape or length; nothing is written
                then.
            OSError: If the store cannot be written; it keeps the earlier episodes.
        """
        if set(episode) != set(COLUMNS):
            raise ValueError(f"an episode has the columns {', '.join(COLUMNS)}, got {', '.join(episode)}")
        rows = {name: np.asarray(values, dtype="<f4") for name, values in episode.items()}
        length = len(rows["state"])
        for name, shape in COLUMNS.items():
            if length == 0 or rows[name].shape != (length, *shape):
                wanted = " x ".join(map(str, shape))
                raise ValueError(f"column {name} must be L >= 1 rows of {wanted}, got {rows[name].shape}")
        self.create()
        ends = self.episode_ends
        first = int(ends[-1]) if len(ends) else 0
        for name, array in self._columns.items():
            array.write(first, rows[name])
        self._ends.write(len(ends), np.array([first + length]))


class _Array:
    """A zarr v2 array on disk that is chunked along its rows alone."""

    def __init__(self, folder: Path, dtype: str, row: tuple[int, ...]) -> None:
        self._folder, self._dtype, self._row = folder, np.dtype(dtype), row

    def is_ours(self) -> bool:
        file = self._folder / ".zarray"
        if not file.is_file():
            return False
        try:
            found = json.loads(file.read_bytes())
        except ValueError:  # not JSON
            return False
        match found:
            case {"shape": [int(count), *_]} if count >= 0:
                return found == self._metadata(count)
        return False

    def read(self) -> NDArray[Any]:
        count = self._count()
        chunks = [self._read_chunk(number) for number in range(-(-count // CHUNK_ROWS))]
        return np.concatenate([np.empty((0, *self._row), self._dtype), *chunks])[:count]

    def write(self, first: int, rows: NDArray[Any]) -> None:
        """Write rows from `first` on and end the array after them; each file changes in one piece."""
        last = first + len(rows)
        for number in range(first // CHUNK_ROWS, -(-last // CHUNK_ROWS)):
            start = number * CHUNK_ROWS
            chunk = self._read_chunk(number) if start < first else self._empty_chunk()
            from_row, to_row = max(first, start), min(last, start + CHUNK_ROWS)
            chunk[from_row - start : to_row - start] = rows[from_row - first : to_row - first]
            _replace(self._chunk_file(number), zlib.compress(chunk.tobytes(), LEVEL))
        self.resize(last)

    def resize(self, count: int) -> None:
        """Say how many rows there are, which creates the array if there is none."""
        self._folder.mkdir(parents=True, exist_ok=True)
        _replace(self._folder / ".zarray", json.dumps(self._metadata(count), indent=4).encode())

    def _metadata(self, count: int) -> dict[str, Any]:
        return {
            "zarr_format": 2,
            "shape": [count, *self._row],
            "chunks": [CHUNK_ROWS, *self._row],
            "dtype": self._dtype.str,
            "compressor": {"id": "zlib", "level": LEVEL},
            "fill_value": 0,
            "filters": None,
            "order": "C",
        }

    def _count(self) -> int:
        file = self._folder / ".zarray"
        return json.loads(file.read_text())["shape"][0] if file.is_file() else 0

    def _chunk_file(self, number: int) -> Path:
        return self._folder / ".".join([str(number), *("0" for _ in self._row)])

    def _empty_chunk(self) -> NDArray[Any]:
        return np.zeros((CHUNK_ROWS, *self._row), self._dtype)

    def _read_chunk(self, number: int) -> NDArray[Any]:
        content = zlib.decompress(self._chunk_file(number).read_bytes())
        return np.frombuffer(content, self._dtype).reshape(CHUNK_ROWS, *self._row).copy()


def _arrays(root: Path) -> tuple[dict[str, _Array], _Array]:
    """The columns of a store, and its `episode_ends`."""
    columns = {name: _Array(root / "data" / name, "<f4", row) for name, row in COLUMNS.items()}
    return columns, _Array(root / "meta" / "episode_ends", "<i8", ())


def _write_groups(root: Path) -> None:
    for folder in (root, root / "data", root / "meta"):
        _replace(folder / ".zgroup", b'{"zarr_format": 2}')


def _replace(file: Path, content: bytes) -> None:
    """Write a file in one piece: whoever looks sees the old content or the new, even after a crash."""
    temporary = file.with_name(file.name + ".partial")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)
