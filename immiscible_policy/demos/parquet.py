"""Parquet files, which LeRobot's data sets are made of, need pyarrow, an extra."""

from __future__ import annotations

from typing import Any

from immiscible_policy.cli import CommandError


def pyarrow_parquet(command: str) -> Any:
    """The module `pyarrow.parquet`.

    Raises CommandError if pyarrow is not installed, naming what needs it.
    """
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise CommandError(f"{command} needs pyarrow: pip install 'immiscible-policy[lerobot]'") from error
    return pyarrow.parquet
