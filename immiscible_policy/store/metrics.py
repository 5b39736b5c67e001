"""Metrics of one seed: a JSONL file, and wandb where it is installed and wanted."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from immiscible_policy.cli import CommandError, one_line


class MetricsFile:
    """One JSON object per line; whole lines only, and none from a future that a resumed run has yet to live.

    Args:
        path: The file.
        resume_step: Lines of later steps are dropped: training is at this step.
    """

    def __init__(self, path: Path, resume_step: int) -> None:
        kept = []
        if path.exists():
            for line in path.read_text().splitlines(keepends=True):
                if line.endswith("\n") and json.loads(line)["step"] <= resume_step:
                    kept.append(line)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.draft")
        draft.write_text("".join(kept))
        os.replace(draft, path)
        self._file = open(path, "a", buffering=1)

    def record(self, row: dict[str, Any]) -> None:
        """Add a line."""
        self._file.write(json.dumps(row) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class WandbRun:
    """The same metrics in wandb, one wandb run per training seed; nothing where wandb is absent or disabled."""

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
