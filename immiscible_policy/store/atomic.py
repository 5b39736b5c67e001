"""Files that are written whole or not at all."""

from __future__ import annotations

import glob
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

ABANDONED = 3600.0
"""Age [s] at which the draft of a file was left by a writer that was killed."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part; its directory is created.

    Drafts that killed writers of this file have left are removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}."
    for draft in path.parent.glob(f"{glob.escape(prefix)}*"):
        with suppress(FileNotFoundError):  # another process writes the same file, and has just ended
            if draft.stat().st_mtime < time.time() - ABANDONED:
                draft.unlink()
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=prefix, delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
