"""Checkpoints: written whole or not at all, verified when read, never executing code.

checkpoints/step_000500/
    metadata.json               what the policy is, step, seed, versions, and the hashes of the files beside it
    model.safetensors           trained weights
    ema.safetensors             EMA weights: what is evaluated
    optimizer.safetensors       in the newest two: what resuming needs besides
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from immiscible_policy.cli import one_line
from immiscible_policy.store.reading import read_json, require_kinds

FORMAT = 1
METADATA = "metadata.json"
KINDS = {"step": int, "seed": int, "sha256": dict, "config": dict, "data_hash": str | None, "versions": dict}
"""Types of what metadata say, where they say it."""
ELSEWHERE = "use another checkpoint"
OPTIMIZER = "optimizer.safetensors"


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or of another kind; the message is one line."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint in its directory, with the metadata that `save_checkpoint` was given."""

    path: Path
    metadata: dict[str, Any]

    @property
    def step(self) -> int:
        """Training steps done when it was written."""
        return self.metadata["step"]

    @property
    def config(self) -> dict[str, Any]:
        """The options of the training; none where they were not recorded."""
        return self.metadata.get("config", {})

    @property
    def evaluated(self) -> bool:
        """Whether no evaluation of it is still to come; training saves before it evaluates."""
        return bool(self.metadata.get("evaluated", True))

    @property
    def resumable(self) -> bool:
        """Whether training can go on from it."""
        return OPTIMIZER in self.metadata["sha256"] and (self.path / OPTIMIZER).exists()

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Read `model`, `ema` or `optimizer`; a CheckpointError if it is missing or its hash is another one."""
        file = self.path / f"{name}.safetensors"
        try:
            content = file.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{file}: {error.strerror}; use another checkpoint") from None
        if hashlib.sha256(content).hexdigest() != self.metadata["sha256"].get(file.name):
            raise CheckpointError(f"{file} is corrupt (its hash is not the recorded one); use another checkpoint")
        try:
            return safetensors.torch.load(content)
        except (safetensors.SafetensorError, ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{file} is damaged ({one_line(error)}); use another checkpoint") from None


def save_checkpoint(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write a checkpoint beside its place, flush it to the disk, and rename it into place.

    An existing one is replaced. The metadata are JSON values, `step` among them; the tensors stand by file: `model`,
    `ema`, perhaps `optimizer`.

    Raises:
        OSError: If it cannot be written (a full disk, say); nothing changes then.
    """
    draft = path.with_name(f".{path.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        hashes = {}
        for name, values in tensors.items():
            content = safetensors.torch.save({key: tensor.contiguous() for key, tensor in values.items()})
            hashes[f"{name}.safetensors"] = hashlib.sha256(content).hexdigest()
            _write(draft / f"{name}.safetensors", content)
        _write(draft / METADATA, json.dumps({"format": FORMAT, **metadata, "sha256": hashes}, indent=2).encode())
        if path.exists():
            shutil.rmtree(path)
        draft.rename(path)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise OSError(error.errno, f"{path} was not saved: {error.strerror}; earlier checkpoints are intact") from None
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint; a CheckpointError if it is missing, incomplete or damaged. Weights are read later."""
    path = Path(path)
    file = path / METADATA
    if not file.is_file():
        raise CheckpointError(f"{path} is not a checkpoint: it has no {METADATA} (give a directory like step_000500)")
    try:
        metadata = read_json(file, ELSEWHERE)
        for key in ("format", "step", "sha256"):
            if key not in metadata:
                raise ValueError(f"{file} is damaged ({key} is missing); {ELSEWHERE}")
        require_kinds(file, metadata, KINDS, ELSEWHERE)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    if metadata["format"] != FORMAT:
        raise CheckpointError(f"{file}: format {metadata['format']} is not the known format {FORMAT}")
    return Checkpoint(path, metadata)


def _write(file: Path, content: bytes) -> None:
    with open(file, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
