"""The training step beside the bare network: what selection, noising, batches, EMA and bookkeeping add.

The bare step is forward, mean squared error, backward and AdamW of the same network on fixed tensors. Ours is the
training loop as users run it. Both alternate in blocks, so that a machine that slows down slows both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from immiscible_policy.training.config import TrainConfig, compose_config
from immiscible_policy.training.loop import Schedule, train
from immiscible_policy.training.noise import noise_options
from immiscible_policy.training.objective import PolicyObjective
from immiscible_policy.training.run import Parts, build_parts, build_state

Figures = dict[str, Any]
NOISES = ("vanilla", "knn", "linear", "idp26", "c2ot", "semidiscrete")


def measure(blocks: int, block_steps: int, words: list[str]) -> Figures:
    """Time every selector's training step against the bare network.

    Args:
        blocks: Alternations.
        block_steps: Steps per block.
        words: Options of `train_policy.py`.

    Returns:
        Milliseconds per step (median over blocks) and the ratio to the bare step (median of the paired ratios).
    """
    config = compose_config(["wandb=disabled", "device=cpu", *words])
    torch.set_num_threads(config.threads or 1)
    parts = build_parts(config)
    run_bare = BareLoop(config, parts)
    runs: dict[str, Callable[[int], None]] = {"bare": run_bare}
    runs |= {name: ours(config, parts, name) for name in NOISES}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for block in range(blocks + 1):
        for name, steps in runs.items():
            start = time.perf_counter()
            steps(block_steps)
            if block:  # the first block warms up
                seconds[name].append((time.perf_counter() - start) / block_steps)
    return {
        "network": {
            "parameters": run_bare.parameters,
            "batch_size": config.batch_size,
            "precision": config.precision,
        },
        "threads": config.threads,
        "ms_per_step": {name: round(1e3 * statistics.median(values), 3) for name, values in seconds.items()},
        "ratio_to_bare": {
            name: round(statistics.median(a / b for a, b in zip(seconds[name], seconds["bare"], strict=True)), 4)
            for name in NOISES
        },
        "batch_assembly_ms": round(1e3 * batch_assembly(parts, config.batch_size), 4),
    }


class BareLoop:
    """The same network, loss, backward and optimizer, on tensors that are there already."""

    def __init__(self, config: TrainConfig, parts: Parts) -> None:
        state, policy = build_state(config, parts, seed=0)
        self.model, self.optimizer = policy.denoiser, state.optimizer
        self.parameters = sum(p.numel() for p in self.model.parameters())
        generator = torch.Generator().manual_seed(0)
        shape = (config.batch_size, config.horizon, parts.spec.action_dim)
        self.noisy = torch.randn(shape, generator=generator)
        self.noise = torch.randn(shape, generator=generator)
        self.condition = torch.randn(config.batch_size, parts.spec.obs_dim * parts.spec.obs_steps)
        self.t = torch.randint(100, (config.batch_size,), generator=generator)
        self.enabled = config.precision == "bf16"

    def __call__(self, steps: int) -> None:
        """Run so many steps."""
        for _ in range(steps):
            with torch.autocast("cpu", torch.bfloat16, enabled=self.enabled):
                prediction = self.model(self.noisy, self.t, self.condition)
                loss = torch.nn.functional.mse_loss(prediction.float(), self.noise)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()


def ours(config: TrainConfig, parts: Parts, noise: str) -> Callable[[int], None]:
    """The training loop with a selector, as a function that runs so many more steps."""
    state, policy = build_state(config, parts, seed=0)
    choice = noise_options(noise_group(noise), steps=10**6, batch_size=config.batch_size, steps_per_epoch=0).build(
        policy.clean(parts.training.action)
    )
    objective = PolicyObjective(policy, parts.training, choice, batch_size=config.batch_size, accumulate=1, seed=0)

    def run(steps: int) -> None:
        schedule = Schedule(state.step + steps, log_every=50, eval_every=10**9, checkpoint_every=10**9)
        train(
            state, objective, schedule, precision=config.precision,
            record=lambda row: None, evaluate=lambda state: {}, save=lambda state: None,
        )  # fmt: skip

    return run


def noise_group(name: str) -> dict[str, Any]:
    """A noise group as configured by default."""
    return compose_config([f"noise={name}", "device=cpu"]).noise


def batch_assembly(parts: Parts, batch_size: int, repeats: int = 300) -> float:
    """Median seconds to gather a batch of windows."""
    windows, generator = parts.training, torch.Generator().manual_seed(0)
    seconds = []
    for _ in range(repeats):
        rows = torch.randint(len(windows), (batch_size,), generator=generator)
        start = time.perf_counter()
        windows[rows]
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
