"""The metrics of a training seed in wandb, where it is installed and wanted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from immiscible_policy.cli import CommandError, one_line


class WandbRun:
    """One wandb run per training seed; nothing where wandb is absent or disabled.

    Raises:
        CommandError: For `mode=online` without wandb, or if wandb refuses.
    """

    def __init__(self, mode: str, directory: Path, run_id: str, name: str, config: dict[str, Any]) -> None:
        self._run: Any = None
        if mode == "disabled":
            return
        try:
            import wandb
        except ImportError:
            if mode == "online":
                raise CommandError(
                    "wandb=online: wandb is not installed; pip install wandb, or wandb=disabled"
                ) from None
            return
        os.environ.setdefault("WANDB_SILENT", "true")
        directory.mkdir(parents=True, exist_ok=True)
        chosen: Any = mode
        try:
            self._run = wandb.init(
                project="immiscible-policy",
                id=run_id,
                resume="allow",
                reinit="create_new",  # other seeds may log from this process
                name=name,
                dir=directory,
                mode=chosen,
                config=config,
            )
        except wandb.errors.Error as error:
            raise CommandError(
                f"wandb={mode}: {one_line(error)}; wandb=offline and wandb=disabled need no account"
            ) from None

    def record(self, row: dict[str, Any]) -> None:
        """Log a row."""
        if self._run is not None:
            self._run.log(row, step=row["step"])

    def close(self) -> None:
        """Finish the wandb run."""
        if self._run is not None:
            self._run.finish()
