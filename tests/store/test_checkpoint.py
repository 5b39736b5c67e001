"""Checkpoints are written whole or not at all, and damage is noticed."""

import errno
import hashlib
import json
import os

import pytest
import torch

from immiscible_policy.store.checkpoint import CheckpointError, read_checkpoint, save_checkpoint
from immiscible_policy.store.run import RunDirectory


def tensors(value=1.0):
    return {name: {"w": torch.full((4,), value)} for name in ("model", "ema", "optimizer")}


def save(path, step, value=1.0):
    save_checkpoint(path / f"step_{step:06d}", {"step": step, "seed": 0}, tensors(value))


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    save(tmp_path, 5, 2.5)
    checkpoint = read_checkpoint(tmp_path / "step_000005")
    assert checkpoint.step == 5 and checkpoint.resumable
    assert torch.equal(checkpoint.tensors("ema")["w"], torch.full((4,), 2.5))


def kept(seed):
    return [checkpoint.step for checkpoint in seed.checkpoints()]


def test_the_newest_two_can_be_resumed_and_these_and_the_best_are_kept(tmp_path):
    seed = RunDirectory(tmp_path).seed(0)
    for step in (1, 2, 3, 4):
        seed.save({"step": step, "seed": 0}, tensors())
        seed.tidy("last+best", {1: 0.1, 2: 0.9, 3: 0.9})
    assert kept(seed) == [2, 3, 4]
    assert [checkpoint.resumable for checkpoint in seed.checkpoints()] == [False, True, True]


def test_what_an_interrupted_training_left_goes_with_the_next_checkpoint(tmp_path):
    seed = RunDirectory(tmp_path).seed(0)
    for step in (2, 3, 4, 5):
        seed.save({"step": step, "seed": 0} | ({"interrupted": True} if step in (3, 5) else {}), tensors())
        seed.tidy("last+best", {})
    assert kept(seed) == [4, 5] and all(checkpoint.resumable for checkpoint in seed.checkpoints())


def test_what_an_interrupted_training_left_takes_no_place_of_the_best(tmp_path):
    seed = RunDirectory(tmp_path).seed(0)
    for step in (10, 20, 25, 30):
        seed.save({"step": step, "seed": 0} | ({"interrupted": True} if step == 25 else {}), tensors())
        seed.tidy("last+best", {10: 0.9, 20: 0.3, 25: 0.95})
    assert kept(seed) == [10, 20, 30]


def test_a_damaged_older_checkpoint_stops_no_training_and_stays(tmp_path):
    seed = RunDirectory(tmp_path).seed(0)
    for step in (1, 2, 3):
        seed.save({"step": step, "seed": 0}, tensors())
        (seed.checkpoint_path(1) / "metadata.json").write_text("{")
        seed.tidy("last+best", {})
    assert seed.newest().step == 3 and (seed.checkpoint_path(1) / "optimizer.safetensors").exists()


def load(checkpoint):
    for name in ("model", "ema", "optimizer"):
        checkpoint.tensors(name)


@pytest.mark.parametrize("file", ["metadata.json", "model.safetensors", "optimizer.safetensors"])
def test_training_goes_on_from_the_checkpoint_before_a_damaged_one(tmp_path, file):
    seed = RunDirectory(tmp_path).seed(0)
    for step in (1, 2, 3):
        seed.save({"step": step, "seed": 0}, tensors())
        seed.tidy("all", {})
    (seed.checkpoint_path(3) / file).write_bytes(b"{")
    checkpoint, errors = seed.restore(load)
    assert checkpoint is not None and checkpoint.step == 2 and kept(seed) == [1, 2]
    assert len(errors) == 1 and f"step_000003/{file} is" in str(errors[0])
    (seed.checkpoint_path(2) / "optimizer.safetensors").unlink()
    with pytest.raises(CheckpointError, match="step_000002/optimizer.safetensors: No such file"):
        seed.restore(load)  # the first has no optimizer state any more
    assert kept(seed) == [1, 2] and RunDirectory(tmp_path).seed(1).restore(load) == (None, [])


def test_keep_all_keeps_all(tmp_path):
    seed = RunDirectory(tmp_path).seed(0)
    for step in (1, 2, 3):
        seed.save({"step": step, "seed": 0}, tensors())
        seed.tidy("all", {})
    assert kept(seed) == [1, 2, 3]


@pytest.mark.parametrize("calls_before", range(4))
def test_a_full_disk_leaves_the_earlier_checkpoint_and_no_debris(tmp_path, monkeypatch, calls_before):
    save(tmp_path, 1)
    calls, fsync = [], os.fsync

    def full(handle):
        calls.append(handle)
        if len(calls) > calls_before:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="step_000002 was not saved: No space left on device"):
        save(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000001"]
    monkeypatch.undo()
    assert read_checkpoint(tmp_path / "step_000001").tensors("model")["w"].tolist() == [1.0] * 4


@pytest.mark.parametrize("name", ["model", "ema", "optimizer"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_damage_is_noticed(tmp_path, name, damage):
    save(tmp_path, 1)
    file = tmp_path / "step_000001" / f"{name}.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "truncate":
        file.write_bytes(content[:-3])
    elif damage == "flip":
        content[-1] ^= 1
        file.write_bytes(content)
    else:
        file.unlink()
    with pytest.raises(CheckpointError, match=f"{name}.safetensors"):
        read_checkpoint(tmp_path / "step_000001").tensors(name)


DAMAGED = ("", "{", "[]", "null", '{"format": 1}', '{"format": 99, "step": 1, "sha256": {}}',
           '{"format": 1, "step": "1", "sha256": {}}', '{"format": 1, "step": 1, "sha256": []}',
           '{"format": 1, "step": 1, "sha256": {}, "config": 3}')  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED)
def test_damaged_metadata_is_one_line(tmp_path, content):
    save(tmp_path, 1)
    (tmp_path / "step_000001" / "metadata.json").write_text(content)
    with pytest.raises(CheckpointError, match="metadata.json"):
        read_checkpoint(tmp_path / "step_000001")


@pytest.mark.parametrize("content", [b"", b"\xff" * 8 + b"{}", b"\x10" + b"\0" * 7 + b'{"w": 1}        '])
def test_weights_that_are_none_though_their_hash_matches_are_one_line(tmp_path, content):
    save(tmp_path, 1)
    path = tmp_path / "step_000001"
    (path / "model.safetensors").write_bytes(content)
    metadata = json.loads((path / "metadata.json").read_text())
    metadata["sha256"]["model.safetensors"] = hashlib.sha256(content).hexdigest()
    (path / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(CheckpointError, match="model.safetensors is damaged .*; use another checkpoint"):
        read_checkpoint(path).tensors("model")


def test_metadata_is_plain_json(tmp_path):
    save(tmp_path, 1)
    assert json.loads((tmp_path / "step_000001" / "metadata.json").read_text())["step"] == 1
