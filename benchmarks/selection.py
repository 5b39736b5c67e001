"""What selection costs: every selector beside `torch.randn` of the same shape, and assignment beside plain scipy.

All candidates of a table take turns, so that a machine that slows down slows all; figures are medians, ratios are
medians of the paired ratios.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from immiscible_policy.analysis.data import pusht_actions
from immiscible_policy.noise import Potentials, fit_potentials, make_selector
from immiscible_policy.noise.costs import distances
from immiscible_policy.noise.solvers import SolverName, solve

Figures = dict[str, Any]
Candidates = dict[str, Callable[[], Tensor]]

KNN_SHAPES = ((256, 32), (256, 3072), (256, 4096), (1024, 3072))
KNN_K = (2, 4, 8, 16, 64)
LITERAL_NUMBERS = 256 * 4096 * 64
"""The literal form is timed up to so many numbers drawn (256 MiB of float32)."""
TURN, MOST_CALLS = 3e-3, 100
"""Seconds that a turn should take, and the most calls in it."""
ASSIGNMENT_SIZES = (64, 128, 256, 512, 1024)


def measure(repeats: int, threads: int, device: str) -> Figures:
    """Time KNN and assignment.

    Args:
        repeats: Turns of each candidate.
        threads: CPU threads.
        device: `cpu` or `cuda`; assignment's solver runs on the CPU in either case.

    Returns:
        Milliseconds and ratios, by table.
    """
    torch.set_num_threads(threads)
    return {
        "threads": threads,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "knn": {f"B={b} D={d}": knn_table(b, d, repeats, device) for b, d in KNN_SHAPES},
        "assignment_on_pusht_actions": {f"B={b}": assignment_table(b, repeats) for b in ASSIGNMENT_SIZES},
    }


def knn_table(batch: int, dims: int, repeats: int, device: str) -> Figures:
    """KNN at every k beside `torch.randn` and the literal k candidates, for samples (batch, dims)."""
    generator = torch.Generator(device).manual_seed(0)
    x = 0.5 * torch.randn(batch, dims, generator=generator, device=device)
    candidates: Candidates = {"randn": lambda: torch.randn(batch, dims, generator=generator, device=device)}
    for k in KNN_K:
        for form in ("auto", "literal"):
            if form == "auto" or batch * dims * k <= LITERAL_NUMBERS:
                select = make_selector("knn", k=k, form=form)
                candidates[f"{form} k={k}"] = partial(select, x, generator=generator)
    seconds = alternate(candidates, repeats, device)
    against = {f"k={k} over randn": ratio(seconds, f"auto k={k}", "randn") for k in KNN_K}
    literal = [k for k in KNN_K if f"literal k={k}" in seconds]
    against |= {f"k={k} over literal": ratio(seconds, f"auto k={k}", f"literal k={k}") for k in literal}
    against["k=64 over k=2"] = ratio(seconds, "auto k=64", "auto k=2")
    return {"ms": medians(seconds), "ratios": against}


def assignment_table(batch: int, repeats: int) -> Figures:
    """Exact solvers on the same cost matrices of real action chunks and noise, with and without potentials."""
    actions = pusht_actions().flatten(1)
    potentials = fit_potentials(actions)
    generator = torch.Generator().manual_seed(0)
    seconds: dict[str, list[float]] = {}
    costs_agree = 0.0
    for _ in range(repeats):
        x = actions[torch.randint(len(actions), (batch,), generator=generator)]
        costs = distances(x, torch.randn(x.shape, generator=generator), None, "euclidean")
        candidates: Candidates = {
            "scipy": partial(scipy, costs),
            "scipy reduced": partial(solve, costs),
            "scipy potentials": partial(solve_warm, costs, "scipy", potentials, x),
            "lapx": partial(lapx, costs),
            "lapx potentials": partial(solve_warm, costs, "lapx", potentials, x),
        }
        totals = {}
        for name, call in candidates.items():
            start = time.perf_counter()
            choice = call()
            seconds.setdefault(name, []).append(time.perf_counter() - start)
            totals[name] = float(costs[torch.arange(batch), choice].double().sum())
        costs_agree = max(costs_agree, *(abs(total / totals["scipy"] - 1) for total in totals.values()))
    ratios = {f"scipy over {name}": ratio(seconds, "scipy", name) for name in seconds if name != "scipy"}
    return {"ms": medians(seconds), "ratios": ratios, "largest_relative_difference_of_costs": costs_agree}


def solve_warm(costs: Tensor, solver: SolverName, potentials: Potentials, x: Tensor) -> Tensor:
    """The solver behind `potentials=`, with the time that the potentials of samples x (B, D) take."""
    return solve(costs, solver, potentials(x))


def scipy(costs: Tensor) -> Tensor:
    """Plain scipy on costs (B, B)."""
    return torch.from_numpy(linear_sum_assignment(costs.numpy())[1])


def lapx(costs: Tensor) -> Tensor:
    """Plain lapx on costs (B, B)."""
    import lap

    return torch.from_numpy(lap.lapjv(costs.double().numpy())[1]).long()


def alternate(candidates: Candidates, repeats: int, device: str = "cpu") -> dict[str, list[float]]:
    """Seconds of each candidate, all taking turns.

    A turn is one call that is not counted, so that no candidate pays for the caches that the one before has emptied,
    and then as many calls as take a few milliseconds. The first turn only finds how many that is.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    calls = {name: max(1, min(MOST_CALLS, int(TURN / timed(call, 3, device)))) for name, call in candidates.items()}
    for _ in range(repeats):
        for name, call in candidates.items():
            call()
            seconds[name].append(timed(call, calls[name], device))
    return seconds


def timed(call: Callable[[], Tensor], calls: int, device: str) -> float:
    """Seconds per call, the device's work included."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / calls


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Milliseconds by name."""
    return {name: round(1e3 * statistics.median(values), 4) for name, values in seconds.items()}


def ratio(seconds: dict[str, list[float]], a: str, b: str) -> float:
    """Median of the paired ratios a / b."""
    return round(statistics.median(x / y for x, y in zip(seconds[a], seconds[b], strict=True)), 3)
