"""What every data set refuses before it reads anything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def require_split(dataset: str, split: str, splits: Sequence[str]) -> None:
    """Refuse a part that a data set does not have.

    Raises:
        ValueError: If split is not one of splits.
    """
    if split not in splits:
        raise ValueError(f"split={split}: {dataset} has {', '.join(splits)}")


def require_limit(limit: int | None) -> None:
    """Refuse a number of images that is none.

    Raises:
        ValueError: If limit is below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: needs 1 or more images, or None for all")


def require_path(path: Path, wanted: str) -> None:
    """Refuse a path where nothing is, and say what should be there.

    Raises:
        ValueError: If the path is missing.
    """
    if not path.exists():
        raise ValueError(f"{path} is missing; {wanted}")
