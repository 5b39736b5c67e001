"""What selection costs: every selector by batch, KNN beside the literal form, assignment beside scipy and torchcfm.

Milliseconds for the noise of a batch, drawing it included. All candidates of a table take turns in one run; figures
are medians over the turns, ratios medians of the paired ratios. Assignment's solvers run on the CPU on any device.

- The floor is `torch.randn` of the samples' shape. *literal* draws all k candidates; ours draws whichever is cheaper,
  these or the winner alone, with the same law.
- Samples are Gaussian; for 32 numbers and in the table of solvers they are action chunks (16 x 2) of the embedded
  demonstrations. c2ot is given random conditions of 20 numbers.
- *potentials* are fitted to the samples beforehand, as training does; *reduced*: row and column minima subtracted
  first, the selector's default. Both are exact; their costs are given.
- torchcfm solves with POT's network simplex, and stops it after 100,000 iterations. A batch of 4,096 needs more: there
  its plan is not optimal, so its time is not that of an exact solver.
- Published (Improved Immiscible Diffusion, arXiv 2505.18521, Table 5; D and k not stated, A5000 in the paper, A6000 in
  its repository): batches of 128, 256, 512, 1,024 take assignment 5.4, 6.7, 8.8, 22.8 ms and KNN 0.2, 0.2, 0.3, 0.7
  ms.
- An empty cell: a smaller batch had taken longer than patience=, or too many numbers to draw.

  python -m benchmarks selection
  python -m benchmarks selection device=cuda
  python -m benchmarks selection batches=64,256,1024 peers=none
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from benchmarks.drawing import log_axes
from benchmarks.measuring import Seconds, medians, ratio, require_positive, timed, where
from benchmarks.peers import Peer, chosen_peers, peer_names
from immiscible_policy.cli import COUNT, Option, parse_range
from immiscible_policy.lab.data import demonstrated_actions
from immiscible_policy.lab.program import legend, plain, program, table
from immiscible_policy.noise import SELECTORS, Potentials, fit_potentials, make_selector
from immiscible_policy.noise.costs import distances
from immiscible_policy.noise.pairing import solve
from immiscible_policy.palette import COLOURS, GREY, panels
from immiscible_policy.results.experiment import Findings
from immiscible_policy.tasks import find_task
from immiscible_policy.training.options import resolve_device

QUICK_SIZES: dict[str, Any] = {"turns": 2, "ks": "1,8", "batches": "8,16", "knn_batch": 8}
KNN_DIMS = (32, 3072, 4096)
CURVE_DIMS = (32, 3072)
CURVE_K = 8
CONDITION_SIZE = 20
LITERAL_NUMBERS = 256 * 4096 * 64
"""The literal form is timed up to so many numbers drawn (256 MiB of float32)."""
TURN, MOST_CALLS = 3e-3, 100
"""Seconds that a turn should take, and the most calls in it."""
FEWEST_TURNS, FULL_TURNS = 3, 512
"""Turns on the largest batches, and the batch up to which there are as many as asked for."""
SOLVERS = ("scipy", "scipy reduced", "scipy potentials")
SELECTING = ("linear", "linear, potentials")
PEER, FLOOR = "torchcfm", "randn"

Figures = dict[str, Any]
Candidates = dict[str, Callable[[], Tensor]]


def measure(options: dict[str, Any]) -> Findings:
    """Time selectors by batch, KNN by k, and solvers of the assignment."""
    ks, batches = (sorted(parse_range(key, options[key])) for key in ("ks", "batches"))
    require_positive(ks=ks, batches=batches)
    device, turns, batch = resolve_device(options["device"]), options["turns"], options["knn_batch"]
    peer, patience = PEER in chosen_peers(options["peers"]), options["patience"]
    torch.set_num_threads(options["threads"])
    actions = demonstrated_actions(find_task("pusht")).flatten(1)
    potentials = fit_potentials(actions)
    figures = {
        "threads": options["threads"],
        "device": where(device, options["threads"]),
        "knn": {
            f"B={size} D={dims}": knn_by_k(size, dims, ks, turns, device)
            for size, dims in [*((batch, dims) for dims in KNN_DIMS), (4 * batch, 3072)]
        },
        "selectors": {
            f"D={dims}": selectors_by_batch(samples, known, batches, turns, patience, device)
            for dims, samples, known in ((32, actions, potentials), (3072, _gaussian(batches[-1], 3072, device), None))
        },
        **assignment_tables(actions, potentials, batches, turns, patience, options["threads"], peer),
    }
    return Findings(figures, describe(figures), draw(figures))


def turns_for(batch: int, turns: int) -> int:
    """Fewer turns on batches that take long."""
    return min(turns, max(FEWEST_TURNS, turns * FULL_TURNS // batch))


def _gaussian(batch: int, dims: int, device: str) -> Tensor:
    return 0.5 * torch.randn(batch, dims, generator=torch.Generator(device).manual_seed(0), device=device)


def knn_by_k(batch: int, dims: int, ks: Sequence[int], turns: int, device: str) -> Figures:
    """KNN at every k beside `torch.randn` and the literal k candidates, for samples (batch, dims)."""
    x, generator = _gaussian(batch, dims, device), torch.Generator(device).manual_seed(0)
    candidates: Candidates = {FLOOR: lambda: torch.randn(batch, dims, generator=generator, device=device)}
    for k in ks:
        for form in ("auto", "literal"):
            if form == "auto" or batch * dims * k <= LITERAL_NUMBERS:
                select = make_selector("knn", k=k, form=form)
                candidates[f"{form} k={k}"] = partial(select, x, generator=generator)
    seconds = alternate(candidates, turns, device)
    against = {f"k={k} over randn": ratio(seconds, f"auto k={k}", FLOOR) for k in ks}
    literal = [k for k in ks if f"literal k={k}" in seconds]
    against |= {f"k={k} over literal": ratio(seconds, f"auto k={k}", f"literal k={k}") for k in literal}
    return {"ms": medians(seconds), "ratios": against}


def selectors_by_batch(
    samples: Tensor, potentials: Potentials | None, batches: Sequence[int], turns: int, patience: float, device: str
) -> Figures:
    """Every selector of the registry with its defaults, KNN in both forms, for the first B samples (N, D).

    A selector that takes over `patience` seconds is not tried on larger batches.
    """
    generator = torch.Generator(device).manual_seed(0)
    selectors = {name: make_selector(name) for name in SELECTORS if name not in ("vanilla", "knn")}
    selectors |= {f"knn k={CURVE_K}": make_selector("knn", k=CURVE_K)}
    selectors |= {f"knn k={CURVE_K} literal": make_selector("knn", k=CURVE_K, form="literal")}
    if potentials is not None:
        selectors["linear, potentials"] = make_selector("linear", potentials=potentials)
    rows = torch.randint(len(samples), (batches[-1],), generator=torch.Generator().manual_seed(0))
    found: Figures = {}
    for batch in batches:
        x = samples[rows[:batch]].to(device)
        condition = torch.randn(batch, CONDITION_SIZE, generator=generator, device=device)
        candidates: Candidates = {FLOOR: partial(torch.randn, x.shape, generator=generator, device=device)}
        for name, select in selectors.items():
            candidates[name] = partial(select, x, condition=condition, generator=generator)
        seconds = alternate(candidates, turns_for(batch, turns), device)
        over = {name: ratio(seconds, name, FLOOR) for name in selectors}
        found[str(batch)] = {"ms": medians(seconds), "over_randn": over}
        selectors = {name: select for name, select in selectors.items() if median(seconds[name]) <= patience}
    return found


def alternate(candidates: Candidates, turns: int, device: str) -> Seconds:
    """Seconds of each candidate, all taking turns.

    A turn is one call that is not counted, so that no candidate pays for the caches that the one before has emptied,
    and then as many calls as take a few milliseconds. The first turn only finds how many that is.
    """
    seconds: Seconds = {name: [] for name in candidates}
    calls = {name: max(1, min(MOST_CALLS, int(TURN / timed(call, 3, device)))) for name, call in candidates.items()}
    for _ in range(turns):
        for name, call in candidates.items():
            call()
            seconds[name].append(timed(call, calls[name], device))
    return seconds


def assignment_tables(
    actions: Tensor,
    potentials: Potentials,
    batches: Sequence[int],
    turns: int,
    patience: float,
    threads: int,
    peer: bool,
) -> Figures:
    """Assignment of action chunks, batch by batch; who takes over `patience` seconds is not tried on larger ones."""
    patient = {*SOLVERS, *SELECTING, *([PEER] if peer else [])}
    figures: Figures = {"assignment_on_pusht_actions": {}}
    with ExitStack() as stack:
        torchcfm = None
        if peer:
            torchcfm = stack.enter_context(Peer(PEER, threads))
            figures["torchcfm"] = torchcfm.ask("build", {"threads": threads})
            torchcfm.ask("data", {"x": actions.tolist()})
        for batch in batches:
            found = assignment_table(actions, potentials, batch, turns_for(batch, turns), patient, torchcfm)
            figures["assignment_on_pusht_actions"][f"B={batch}"] = found
            patient = {name for name in patient if found["ms"].get(name, 0) <= 1e3 * patience}
    return figures


def assignment_table(
    actions: Tensor, potentials: Potentials, batch: int, turns: int, taking_part: set[str], torchcfm: Peer | None
) -> Figures:
    """Exact solvers on the same cost matrices of real action chunks and noise; and whole selections of the same batch.

    Args:
        actions: Action chunks (N, D).
        potentials: Fitted to them.
        batch: Chunks that are paired at once.
        turns: Batches.
        taking_part: Names of `SOLVERS`, `SELECTING` and the peer.
        torchcfm: The peer; it and the selectors draw the noise and compute the costs within their time.
    """
    generator = torch.Generator().manual_seed(0)
    plain_one, warm_one = make_selector("linear"), make_selector("linear", potentials=potentials)
    selectors = dict(zip(SELECTING, (plain_one, warm_one), strict=True))
    seconds: Seconds = {}
    costs_agree, left_out = 0.0, []
    for _ in range(turns):
        rows = torch.randint(len(actions), (batch,), generator=generator)
        x = actions[rows]
        costs = distances(x, torch.randn(x.shape, generator=generator), None, "euclidean")
        totals = {}
        for name, call in solvers(costs, potentials, x).items():
            if name in taking_part:
                start = time.perf_counter()
                choice = call()
                seconds.setdefault(name, []).append(time.perf_counter() - start)
                totals[name] = float(costs[torch.arange(batch), choice].double().sum())
        costs_agree = max(costs_agree, *(abs(total / min(totals.values()) - 1) for total in totals.values()), 0.0)
        for name in taking_part & set(selectors):
            seconds.setdefault(name, []).append(timed(partial(selectors[name], x, generator=generator)))
        if torchcfm is not None and PEER in taking_part:
            answer = torchcfm.ask("pair", {"rows": rows.tolist()})
            seconds.setdefault(PEER, []).append(answer["seconds"])
            left_out.append(answer["left_out"])
    pairs = [("scipy", name) for name in SOLVERS[1:]] + [(PEER, name) for name in SELECTING]
    over = {f"{a} over {b}": ratio(seconds, a, b) for a, b in pairs if a in seconds and b in seconds}
    figures: Figures = {"ms": medians(seconds), "ratios": over}
    if left_out:
        figures["left_out_by_torchcfm"] = round(median(left_out), 4)
    return figures | {"largest_relative_difference_of_costs": costs_agree}


def solvers(costs: Tensor, potentials: Potentials, x: Tensor) -> Candidates:
    """Exact solvers of costs (B, B) between samples x (B, D) and their noises, by name.

    Those with potentials spend the time on evaluating them as well.
    """
    return {
        "scipy": lambda: torch.from_numpy(linear_sum_assignment(costs.numpy())[1]),
        "scipy reduced": partial(solve, costs),
        "scipy potentials": lambda: solve(costs, potentials(x)),
    }


def describe(figures: Figures) -> str:
    """The tables: every selector by batch, KNN by k, solvers and whole selections by batch."""
    parts = [f"{figures['device']}.", "### Every selector"]
    for dims, by_batch in figures["selectors"].items():
        names = list(next(iter(by_batch.values()))["ms"])
        rows = [{"batch": f"{int(batch):,}", **found} for batch, found in by_batch.items()]
        parts += [dims, table({"B": "{batch}", **{name: f"{{ms[{name}]:.3g}}" for name in names}}, rows)]
    parts.append("### KNN")
    columns = {
        "KNN": "k = {k}", "ours": "{ours:.3g}", "literal": "{literal:.3g}", "ours / literal": "{over_literal:.3g}",
        "floor (randn)": "{floor:.3g}", "ours / floor": "{over_floor:.3g}",
    }  # fmt: skip
    for shape, found in figures["knn"].items():
        parts += [shape, table(columns, _knn_rows(found))]
    return "\n\n".join([*parts, "### Assignment", *_assignment_text(figures)])


def _knn_rows(found: Figures) -> list[Figures]:
    ms, over = found["ms"], found["ratios"]
    return [
        {"k": k, "ours": ms[f"auto k={k}"], "literal": ms.get(f"literal k={k}"), "floor": ms[FLOOR],
         "over_literal": over.get(f"k={k} over literal"), "over_floor": over[f"k={k} over randn"]}
        for k in (name.removeprefix("auto k=") for name in ms if name.startswith("auto"))
    ]  # fmt: skip


def _assignment_text(figures: Figures) -> list[str]:
    rows = [{"B": name, **found} for name, found in figures["assignment_on_pusht_actions"].items()]
    took_part = "torchcfm did not take part."
    if "torchcfm" in figures:
        versions = ", ".join(f"{name} {version}" for name, version in figures["torchcfm"]["versions"].items())
        left_out = 100 * median(row["left_out_by_torchcfm"] for row in rows if "left_out_by_torchcfm" in row)
        took_part = (
            f'torchcfm ({versions}): `OTPlanSampler("exact")`, squared distances. It draws pairs from the plan with\n'
            f"replacement, so they are not a permutation: {left_out:.0f}% of the samples are in no pair."
        )
    apart = max(row["largest_relative_difference_of_costs"] for row in rows)
    return [
        _times("solving alone", rows, SOLVERS, [("scipy", "scipy reduced"), ("scipy", "scipy potentials")]),
        f"Largest relative difference of the totals: {apart:.2g}. The whole selection (noise, costs, solving):",
        _times("selecting", rows, (*SELECTING, PEER), [(PEER, name) for name in SELECTING]),
        took_part,
    ]


def _times(title: str, rows: Sequence[Figures], names: Sequence[str], pairs: Sequence[tuple[str, str]]) -> str:
    """A table of milliseconds, and of the ratios of some pairs."""
    times = {name: f"{{ms[{name}]:.3g}}" for name in names}
    over = {f"{a} / {b}": f"{{ratios[{a} over {b}]:.3g}}" for a, b in pairs}
    return table({title: "{B}", **times, **over}, rows)


def draw(figures: Figures) -> Figure:
    """KNN against k, every selector against the batch, and assignment beside torchcfm."""
    figure, axes = panels(4, title=f"milliseconds of a selection, {figures['device']}; dotted: torch.randn")
    plain(axes[0], "KNN (dashed: literal)", "candidates k", "milliseconds")
    for colour, (shape, found) in zip(COLOURS, list(figures["knn"].items())[: len(CURVE_DIMS)], strict=False):
        for form, style in (("auto", "-"), ("literal", "--")):
            times = {int(name.partition("=")[2]): ms for name, ms in found["ms"].items() if name.startswith(form)}
            label = shape if form == "auto" else None
            axes[0].plot(list(times), list(times.values()), style, color=colour, marker="o", markersize=3, label=label)
        axes[0].axhline(found["ms"][FLOOR], color=colour, linewidth=1, linestyle=":")
    log_axes(axes[0], [int(row["k"]) for row in _knn_rows(next(iter(figures["knn"].values())))])
    legend(axes[0])
    for panel, (dims, by_batch) in zip(axes[1:], figures["selectors"].items(), strict=False):
        plain(panel, f"every selector, {dims}", "batch B")
        _draw_by_batch(panel, {int(batch): found["ms"] for batch, found in by_batch.items()})
    plain(axes[3], "assignment of PushT action chunks", "batch B")
    by_batch = {int(name[2:]): found["ms"] for name, found in figures["assignment_on_pusht_actions"].items()}
    names = ("scipy", *SELECTING, PEER)
    _draw_by_batch(axes[3], {batch: {n: ms[n] for n in names if n in ms} for batch, ms in by_batch.items()})
    return figure


def _draw_by_batch(axes: Axes, by_batch: Mapping[int, Mapping[str, float]]) -> None:
    """Milliseconds of each candidate against the batch, as far as it was tried."""
    names = list(next(iter(by_batch.values())))
    for colour, name in zip([GREY, *COLOURS, "#999999"], names, strict=False):
        times = {batch: ms[name] for batch, ms in by_batch.items() if name in ms}
        style = ":" if name == FLOOR else "--" if "literal" in name else "-"
        axes.plot(list(times), list(times.values()), style, color=colour, marker="o", markersize=3, label=name)
    log_axes(axes, list(by_batch))
    legend(axes)


OPTIONS = {
    "ks": Option(str, "1,2,4,8,16,32,64", "candidates of KNN"),
    "knn_batch": Option(COUNT, 256, "batch on which k varies"),
    "batches": Option(str, "64,128,256,512,1024,2048,4096", "batches of the cost curves"),
    "turns": Option(COUNT, 15, "turns of each candidate; fewer on large batches"),
    "patience": Option(float, 2.0, "seconds after which a candidate is not tried on larger batches"),
    "threads": Option(COUNT, 1, "CPU threads"),
    "device": Option(str, "cpu", "cpu or cuda"),
    "peers": Option(peer_names, None, "all, none, or names; none given: all that are installed"),
}
EXPERIMENT = program(__name__, __doc__, measure, OPTIONS, QUICK_SIZES)
