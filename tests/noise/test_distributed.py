"""The global assignment over several processes is that of one process."""

import multiprocessing
import socket

import pytest
import torch
import torch.distributed as dist

from immiscible_policy.noise import AcrossProcesses, make_selector
from tests.random_numbers import generator

BATCH, DIMS = 24, 5


def data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, DIMS, generator=source)
    return x, torch.randint(3, (BATCH,), generator=source), torch.rand(BATCH, DIMS, generator=source) < 0.8


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def work(rank: int, size: int, port: int, results: multiprocessing.Queue) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    x, label, mask = (part.chunk(size)[rank] for part in data())
    linear = AcrossProcesses(make_selector("linear"))
    result = {
        "linear": linear(x, mask=mask, generator=generator(7 + rank)),
        "c2ot": AcrossProcesses(make_selector("c2ot"))(x, condition=label, generator=generator(7 + rank)),
        "errors": [],
    }
    bad = torch.full_like(x, float("nan")) if rank == size - 1 else x
    for unusable in (bad, x[: 2 + (rank == 0)]):
        try:
            linear(unusable, generator=generator(0))
        except ValueError as error:
            result["errors"].append(str(error))
    results.put((rank, {name: item.tolist() if torch.is_tensor(item) else item for name, item in result.items()}))
    dist.destroy_process_group()


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_pair_their_global_batch_as_one_process_does(size):
    context = multiprocessing.get_context("spawn")
    results, port = context.Queue(), free_port()
    workers = [context.Process(target=work, args=(rank, size, port, results)) for rank in range(size)]
    for worker in workers:
        worker.start()
    result = dict(results.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join(timeout=60)
    x, label, mask = data()
    alone = {
        "linear": make_selector("linear")(x, mask=mask, generator=generator(7)),
        "c2ot": make_selector("c2ot")(x, condition=label, generator=generator(7)),
    }
    for name, expected in alone.items():
        together = torch.tensor([row for rank in range(size) for row in result[rank][name]])
        assert torch.equal(together, expected)
    for rank in range(size):
        nan, shapes = result[rank]["errors"]
        assert "nan in sample" in nan and "all need the same shapes" in shapes


def test_in_one_process_it_is_the_plain_selector():
    x, _, _ = data()
    together = AcrossProcesses(make_selector("linear"))(x, generator=generator(1))
    assert torch.equal(together, make_selector("linear")(x, generator=generator(1)))
