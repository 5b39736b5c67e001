"""Batches as trees: counted, cut and copied whatever they hold."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from immiscible_policy.training.batches import clone, cut, size, tensors


class Seen(NamedTuple):
    numbers: Tensor
    frames: dict[str, Tensor]
    prompt: Tensor | None


class Batch(NamedTuple):
    seen: Seen
    target: Tensor


def batch(rows):
    x = torch.arange(3.0 * rows).reshape(rows, 3)
    return Batch(Seen(x, {"front": x.reshape(rows, 1, 3), "wrist": -x}, None), x[:, 0])


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 9])
def test_cutting_is_chunking_every_tensor(parts):
    whole = batch(7)
    pieces = cut(whole, parts)
    assert [size(piece) for piece in pieces] == [len(rows) for rows in whole.target.chunk(parts)]
    assert all(isinstance(piece, Batch) and piece.seen.prompt is None for piece in pieces)
    for number, tensor in enumerate(tensors(whole)):
        assert torch.equal(torch.cat([tensors(piece)[number] for piece in pieces]), tensor)
    for piece in pieces:
        assert torch.equal(piece.seen.frames["wrist"], -piece.seen.numbers)


def test_a_clone_has_memory_of_its_own():
    whole = batch(2)
    copy = clone(whole)
    for tensor in tensors(copy):
        tensor.zero_()
    assert len(tensors(copy)) == 4 and all(tensor.any() for tensor in tensors(whole))


def test_a_single_tensor_is_a_batch():
    x = torch.arange(4)
    assert size(x) == 4 and [part.tolist() for part in cut(x, 2)] == [[0, 1], [2, 3]]
