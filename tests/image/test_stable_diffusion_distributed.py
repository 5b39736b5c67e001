"""Two processes choose noise for their latents, and train, as one process with the global batch."""

import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from immiscible_policy.image.model import TextSample
from immiscible_policy.image.stable_diffusion import build_stable_diffusion
from immiscible_policy.image.tiny import tiny_stable_diffusion
from immiscible_policy.noise import AcrossProcesses, make_selector
from tests.image.specs import tiny_stable_diffusion_spec
from tests.noise.test_distributed import free_port

BATCH, SIZE = 12, 2
NAMES = ["cat", "bird", "bird", "cat", "cat", "bird"] * 2
SELECTORS = ("linear", "c2ot")


def built(directory: Path):
    torch.manual_seed(0)
    return build_stable_diffusion(tiny_stable_diffusion_spec(directory, prompt_dropout=0.2))


def work(rank: int, port: int, directory: Path) -> None:
    """One process's share: its latents and conditions, the generator's state before selection, noise, gradient."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=SIZE)
    model, result = built(directory), {}
    pixels = torch.rand(BATCH, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    model.denoiser = DistributedDataParallel(model.denoiser)
    for name in SELECTORS:
        select, seen = AcrossProcesses(make_selector(name)), {}

        def watched(x, select=select, seen=seen, **given):
            seen |= {"x": x, "condition": given["condition"], "state": given["generator"].get_state()}
            return select(x, **given)

        batch = model.noised(
            pixels.chunk(SIZE)[rank],
            watched,
            step=0,
            generator=torch.Generator().manual_seed(7 + rank),
            prompts=NAMES[rank * BATCH // SIZE :][: BATCH // SIZE],
        )
        result[name] = seen | {"batch": tuple(batch)}
    model.loss(batch).backward()
    result["gradient"] = model.denoiser.module.conv_in.weight.grad
    torch.save(result, directory / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    directory = tiny_stable_diffusion(tmp_path_factory.mktemp("distributed") / "tiny", ["cat", "bird"])
    context, port = multiprocessing.get_context("spawn"), free_port()
    workers = [context.Process(target=work, args=(rank, port, directory)) for rank in range(SIZE)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=300)
        assert worker.exitcode == 0
    return directory, [torch.load(directory / f"{rank}.pt") for rank in range(SIZE)]


pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", SELECTORS)
def test_the_noise_is_that_of_one_process_with_all_latents(result, name):
    parts = [part[name] for part in result[1]]
    x, condition = (torch.cat([part[key] for part in parts]) for key in ("x", "condition"))
    generator = torch.Generator()
    generator.set_state(parts[0]["state"])
    alone = make_selector(name)(x, condition=condition, generator=generator)
    noise = torch.cat([TextSample(*part["batch"]).target for part in parts])
    assert torch.equal(noise, alone)


def test_the_mean_gradient_is_that_of_the_global_batch(result):
    directory, ranks = result
    batch = TextSample(*map(torch.cat, zip(*(rank[SELECTORS[-1]]["batch"] for rank in ranks), strict=True)))
    model = built(directory)
    model.loss(batch).backward()
    for rank in ranks:
        torch.testing.assert_close(rank["gradient"], model.denoiser.conv_in.weight.grad, rtol=1e-4, atol=1e-6)
