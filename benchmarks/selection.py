"""What selection costs: KNN beside `torch.randn` and the literal form, assignment beside plain scipy and torchcfm."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
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
from benchmarks.measuring import QUICK, Seconds, medians, ratio, require_positive, short, timed, where
from benchmarks.peers import Peer, chosen_peers, peer_names
from immiscible_policy.cli import Option, parse_range
from immiscible_policy.lab.data import pusht_actions
from immiscible_policy.lab.report import panels, table
from immiscible_policy.noise import Potentials, fit_potentials, make_selector
from immiscible_policy.noise.costs import distances
from immiscible_policy.noise.solvers import SolverName, solve
from immiscible_policy.palette import COLOURS, GREY
from immiscible_policy.results.experiment import Experiment, Findings
from immiscible_policy.training.options import resolve_device

USAGE = """\
usage: python -m benchmarks selection [KEY=VALUE ...]

KNN beside torch.randn and the literal k candidates, assignment beside plain scipy and torchcfm, by batch and by k.

KNN chooses noise for Gaussian samples; assignment pairs action chunks of the embedded demonstrations with noise. All
candidates of a table take turns in one run.

  python -m benchmarks selection
  python -m benchmarks selection device=cuda
  python -m benchmarks selection batches=64,256,1024 peers=none
"""
QUICK_SIZES: dict[str, Any] = {"turns": 2, "ks": "1,8", "batches": "8,16", "knn_batch": 8}
KNN_DIMS = (32, 3072, 4096)
CURVE_DIMS = (32, 3072)
CURVE_K = 8
LITERAL_NUMBERS = 256 * 4096 * 64
"""The literal form is timed up to so many numbers drawn (256 MiB of float32)."""
TURN, MOST_CALLS = 3e-3, 100
"""Seconds that a turn should take, and the most calls in it."""
FEWEST_TURNS, FULL_TURNS = 3, 512
"""Turns on the largest batches, and the batch up to which there are as many as asked for."""
SOLVERS = ("scipy", "scipy reduced", "scipy potentials", "lapx", "lapx potentials")
SELECTORS = ("linear", "linear, potentials")
PEER = "torchcfm"

Figures = dict[str, Any]
Candidates = dict[str, Callable[[], Tensor]]


def measure(options: dict[str, Any]) -> Findings:
    """Time KNN and assignment; assignment's solvers run on the CPU on any device."""
    options = {**options, **(QUICK_SIZES if options["quick"] else {})}
    require_positive(options, ("turns", "threads"))
    ks, batches = (sorted(parse_range(key, options[key])) for key in ("ks", "batches"))
    require_positive({"ks": ks[0], "batches": batches[0]}, ("ks", "batches"))
    device, turns, batch = resolve_device(options["device"]), options["turns"], options["knn_batch"]
    peer_takes_part = PEER in chosen_peers(options["peers"])
    torch.set_num_threads(options["threads"])
    shapes = [*((batch, dims) for dims in KNN_DIMS), (4 * batch, 3072)]
    curves = {
        f"D={d}": {str(b): knn_table(b, d, (CURVE_K,), turns_for(b, turns), device) for b in batches}
        for d in CURVE_DIMS
    }
    figures = {
        "threads": options["threads"],
        "device": where(device, options["threads"]),
        "knn": {f"B={b} D={d}": knn_table(b, d, ks, turns, device) for b, d in shapes},
        "knn_by_batch": {"k": CURVE_K, **curves},
        **assignment_tables(batches, turns, options["patience"], options["threads"], peer_takes_part),
    }
    return Findings(figures, _text(figures), _picture(figures))


def turns_for(batch: int, turns: int) -> int:
    """Fewer turns on batches that take long."""
    return min(turns, max(FEWEST_TURNS, turns * FULL_TURNS // batch))


def knn_table(batch: int, dims: int, ks: Sequence[int], turns: int, device: str) -> Figures:
    """KNN at every k beside `torch.randn` and the literal k candidates, for samples (batch, dims)."""
    generator = torch.Generator(device).manual_seed(0)
    x = 0.5 * torch.randn(batch, dims, generator=generator, device=device)
    candidates: Candidates = {"randn": lambda: torch.randn(batch, dims, generator=generator, device=device)}
    for k in ks:
        for form in ("auto", "literal"):
            if form == "auto" or batch * dims * k <= LITERAL_NUMBERS:
                select = make_selector("knn", k=k, form=form)
                candidates[f"{form} k={k}"] = partial(select, x, generator=generator)
    seconds = alternate(candidates, turns, device)
    against = {f"k={k} over randn": ratio(seconds, f"auto k={k}", "randn") for k in ks}
    literal = [k for k in ks if f"literal k={k}" in seconds]
    against |= {f"k={k} over literal": ratio(seconds, f"auto k={k}", f"literal k={k}") for k in literal}
    if {2, 64} <= set(ks):
        against["k=64 over k=2"] = ratio(seconds, "auto k=64", "auto k=2")
    return {"ms": medians(seconds), "ratios": against}


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


def assignment_tables(batches: Sequence[int], turns: int, patience: float, threads: int, peer: bool) -> Figures:
    """Assignment of action chunks, batch by batch; who takes over `patience` seconds is not tried on larger ones."""
    actions = pusht_actions().flatten(1)
    potentials = fit_potentials(actions)
    patient = {*SOLVERS, *SELECTORS, *([PEER] if peer else [])}
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
        taking_part: Names of `SOLVERS`, `SELECTORS` and the peer.
        torchcfm: The peer; it and the selectors draw the noise and compute the costs within their time.
    """
    generator = torch.Generator().manual_seed(0)
    selectors = {
        "linear": make_selector("linear"),
        "linear, potentials": make_selector("linear", potentials=potentials),
    }
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
    figures: Figures = {"ms": medians(seconds), "ratios": _assignment_ratios(seconds)}
    if left_out:
        figures["left_out_by_torchcfm"] = round(median(left_out), 4)
    return figures | {"largest_relative_difference_of_costs": costs_agree}


def _assignment_ratios(seconds: Seconds) -> dict[str, float]:
    found: dict[str, float] = {}
    if "scipy" in seconds:
        found |= {f"scipy over {name}": ratio(seconds, "scipy", name) for name in SOLVERS[1:] if name in seconds}
    if PEER in seconds:
        found |= {f"{PEER} over {name}": ratio(seconds, PEER, name) for name in SELECTORS if name in seconds}
    return found


def solvers(costs: Tensor, potentials: Potentials, x: Tensor) -> Candidates:
    """Exact solvers of costs (B, B) between samples x (B, D) and their noises, by name."""
    return {
        "scipy": partial(scipy, costs),
        "scipy reduced": partial(solve, costs),
        "scipy potentials": partial(solve_warm, costs, "scipy", potentials, x),
        "lapx": partial(lapx, costs),
        "lapx potentials": partial(solve_warm, costs, "lapx", potentials, x),
    }


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


def _text(figures: Figures) -> str:
    parts = [
        f"""\
## Selection

Milliseconds on {figures["device"]}. Medians over turns in alternation; ratios are medians of the paired ratios.

### KNN

The floor is `torch.randn` of the samples' shape. *literal* draws all k candidates; ours draws whichever is cheaper,
these or the winner alone, with the same law. A dash: more than {LITERAL_NUMBERS:,} numbers to draw.
"""
    ]
    parts += [f"{shape}\n\n{_knn_rows(found)}\n" for shape, found in figures["knn"].items()]
    k = figures["knn_by_batch"]["k"]
    parts += [
        f"{dims}, k = {k}, by batch\n\n{_knn_batch_rows(curve, k)}\n"
        for dims, curve in figures["knn_by_batch"].items()
        if dims != "k"
    ]
    return "\n".join([*parts, _assignment_text(figures)])


def _knn_rows(found: Figures) -> str:
    ms, over = found["ms"], found["ratios"]
    ks = [name.removeprefix("auto k=") for name in ms if name.startswith("auto")]
    rows = [
        [f"k = {k}", short(ms[f"auto k={k}"]), short(ms.get(f"literal k={k}")), short(over.get(f"k={k} over literal")),
         short(ms["randn"]), short(over[f"k={k} over randn"])]
        for k in ks
    ]  # fmt: skip
    return table(["KNN", "ours", "literal", "ours / literal", "floor (randn)", "ours / floor"], rows)


def _knn_batch_rows(curve: Figures, k: int) -> str:
    rows = [
        [f"{int(batch):,}", short(found["ms"][f"auto k={k}"]), short(found["ms"].get(f"literal k={k}")),
         short(found["ratios"].get(f"k={k} over literal")), short(found["ms"]["randn"]),
         short(found["ratios"][f"k={k} over randn"])]
        for batch, found in curve.items()
    ]  # fmt: skip
    return table(["B", "ours", "literal", "ours / literal", "floor (randn)", "ours / floor"], rows)


def _assignment_text(figures: Figures) -> str:
    tables = figures["assignment_on_pusht_actions"]
    ours = [name for name in SOLVERS if name != "scipy"]
    solving = [
        [batch, *(short(found["ms"].get(name)) for name in SOLVERS),
         *(short(found["ratios"].get(f"scipy over {name}")) for name in ours[:2])]
        for batch, found in tables.items()
    ]  # fmt: skip
    whole = [
        [batch, *(short(found["ms"].get(name)) for name in (*SELECTORS, PEER)),
         *(short(found["ratios"].get(f"{PEER} over {name}")) for name in SELECTORS)]
        for batch, found in tables.items()
    ]  # fmt: skip
    names = [f"scipy / {name.removeprefix('scipy ')}" for name in ours[:2]]
    apart = max(found["largest_relative_difference_of_costs"] for found in tables.values())
    return f"""\
### Assignment

Action chunks of the embedded demonstrations (16 x 2 numbers) and noise. The costs are given; all solvers are exact
(largest relative difference of the totals: {apart:.2g}).
*reduced*: row and column minima subtracted first, the selector's default. *potentials*: fitted beforehand. A dash: the
smaller batch had taken too long.

{table(["solving alone", *SOLVERS, *names], solving)}

The whole selection: noise, costs, solving.
{_torchcfm_line(figures)}

{table(["selecting", *SELECTORS, PEER, *(f"{PEER} / {name}" for name in SELECTORS)], whole)}
"""


def _torchcfm_line(figures: Figures) -> str:
    if "torchcfm" not in figures:
        return "torchcfm did not take part."
    versions = ", ".join(f"{name} {version}" for name, version in figures["torchcfm"]["versions"].items())
    found = [each["left_out_by_torchcfm"] for each in figures["assignment_on_pusht_actions"].values()
             if "left_out_by_torchcfm" in each]  # fmt: skip
    return (
        f'torchcfm ({versions}): `OTPlanSampler("exact")`, squared distances.\nIt draws pairs from the plan '
        f"with replacement, so they are no permutation: {100 * median(found):.0f} % of the samples are in no pair."
    )


def _picture(figures: Figures) -> Figure:
    figure, axes = panels(3, title=f"time of a selection, {figures['device']}; grey: the floor")
    _draw_by_k(axes[0], figures["knn"])
    _draw_by_batch(axes[1], figures["knn_by_batch"])
    _draw_assignment(axes[2], figures["assignment_on_pusht_actions"])
    axes[0].set_ylabel("milliseconds", fontsize=9)
    return figure


def _draw_by_k(axes: Axes, tables: Figures) -> None:
    shown = list(tables.items())[: len(CURVE_DIMS)]
    for colour, (shape, found) in zip(COLOURS, shown, strict=False):
        for form, style in (("auto", "-"), ("literal", "--")):
            times = {int(name.partition("=")[2]): ms for name, ms in found["ms"].items() if name.startswith(form)}
            label = f"KNN, {shape}" + (" literal" if form == "literal" else "")
            axes.plot(list(times), list(times.values()), style, color=colour, marker="o", markersize=3, label=label)
        axes.axhline(found["ms"]["randn"], color=GREY, linewidth=1, linestyle=":")
    log_axes(axes, sorted({int(name.partition("=")[2]) for name in shown[0][1]["ms"] if "auto" in name}))
    axes.set_xlabel("candidates k (dotted: torch.randn)", fontsize=9)
    axes.legend(fontsize=8, frameon=False)


def _draw_by_batch(axes: Axes, curves: Figures) -> None:
    k = curves["k"]
    for colour, (dims, curve) in zip(COLOURS, ((d, c) for d, c in curves.items() if d != "k"), strict=False):
        for name, style, shade in (
            (f"auto k={k}", "-", colour),
            (f"literal k={k}", "--", colour),
            ("randn", ":", GREY),
        ):
            times = {int(batch): found["ms"][name] for batch, found in curve.items() if name in found["ms"]}
            label = None if name == "randn" else f"KNN k={k}, {dims}" + (" literal" if "literal" in name else "")
            axes.plot(list(times), list(times.values()), style, color=shade, marker="o", markersize=3, label=label)
    log_axes(axes, [int(batch) for batch in curve])
    axes.set_xlabel("batch B (dotted: torch.randn)", fontsize=9)
    axes.legend(fontsize=8, frameon=False)


def _draw_assignment(axes: Axes, tables: Figures) -> None:
    batches = [int(name.removeprefix("B=")) for name in tables]
    styles = {
        "scipy": (GREY, "--"),
        "linear": (COLOURS[0], "-"),
        "linear, potentials": (COLOURS[2], "-"),
        PEER: (COLOURS[1], "-"),
    }
    for name, (colour, style) in styles.items():
        times = {
            batch: found["ms"][name]
            for batch, found in zip(batches, tables.values(), strict=True)
            if name in found["ms"]
        }
        label = "scipy, costs given" if name == "scipy" else name
        if times:
            axes.plot(list(times), list(times.values()), style, color=colour, marker="o", markersize=3, label=label)
    log_axes(axes, batches)
    axes.set_xlabel("batch B, PushT action chunks", fontsize=9)
    axes.legend(fontsize=8, frameon=False)


EXPERIMENT = Experiment(
    USAGE,
    measure,
    {
        "ks": Option(str, "1,2,4,8,16,32,64", "candidates of KNN"),
        "knn_batch": Option(int, 256, "batch on which k varies"),
        "batches": Option(str, "64,128,256,512,1024,2048,4096", "batches of the cost curves"),
        "turns": Option(int, 15, "turns of each candidate; fewer on large batches"),
        "patience": Option(float, 2.0, "seconds after which an assignment is not tried on larger batches"),
        "threads": Option(int, 1, "CPU threads"),
        "device": Option(str, "cpu", "cpu or cuda"),
        "peers": Option(peer_names, None, "all, none, or names; none given: all that are installed"),
        "quick": QUICK,
    },
)
