"""How often a comparison of a policy with itself shows a difference, and how often it finds one that was planted.

A bank is the score of one checkpoint from the published starts under independent sampling seeds. A comparison draws
two disjoint handfuls of its seeds, as if they were two runs, and asks what compare_policies.py asks: does the 95 %
interval of A - B exclude 0? Then B is made worse by a known difference. A bank that does not exist yet is rolled out
from the checkpoint at its place in checkpoint=, and written. Banks vary in sampling noise alone; what training seeds
add is in tests/evaluation/test_statistics.py.

- *Rejected*: share whose interval excludes 0 though nothing differs. *Bank*: how far one bank of so few seeds moves it
  (standard deviation, simulated); no resampling makes it smaller.
- *Detected*: share that excludes 0 after every episode of B has lost the planted difference (none below 0). *Student*:
  power of the t test for normal seed means that vary as the bank's.
- *Needed*: seeds per run from `episodes_needed`, at which about half should be detected.
- Brackets: 95 % intervals of the resampling (Clopper and Pearson).

  python -m benchmarks selftest bank=bank.json checkpoint=runs/mine/seed_0/checkpoints/step_003000
  python -m benchmarks selftest bank=bank.json comparisons=10000
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from scipy import stats

from benchmarks.measuring import require_positive
from immiscible_envs.starts import TEST_SEEDS, published_starts
from immiscible_policy.cli import COUNT, CommandError, Option, expanded, parse_range, require_writable, whole
from immiscible_policy.evaluation.agent import load_agent
from immiscible_policy.evaluation.rollout import ActingPolicy, evaluate
from immiscible_policy.evaluation.statistics import (
    Arms,
    Array,
    Interval,
    difference_arms,
    episodes_needed,
    interval,
)
from immiscible_policy.lab.program import legend, plain, program, table
from immiscible_policy.palette import COLOURS, GREY, panels
from immiscible_policy.results.experiment import Findings
from immiscible_policy.solver import Solver
from immiscible_policy.store.atomic import write_atomically
from immiscible_policy.store.checkpoint import read_checkpoint
from immiscible_policy.tasks import find_task

LEVEL = 0.05
"""Share of comparisons of equals that may show a difference."""
STRIDE = 10_000
"""Sampling seeds per start: episodes are named start * STRIDE + seed."""
PAIRINGS = {"paired": True, "unpaired": False}
"""Whether a comparison pairs the seeds of A and B, as it does where both runs have the same."""

COLUMNS = {
    "": "{pairing}",
    "seeds per run": "{seeds}",
    "rejected": "{rejected:.1%}",
    "bank": "{deviation_of_banks:.1%}",
    "detected": "{found:.1%}",
    "Student": "{student_power:.1%}",
    "needed": "{needed_seeds:d}",
}
Figures = dict[str, Any]


@dataclass(frozen=True)
class Bank:
    """What one checkpoint scores, again and again.

    Attributes:
        step: Its training step.
        sampler: How it denoised.
        starts: Start seeds (N).
        coverage: Largest coverage of each episode (sampling seeds, starts).
    """

    step: int
    sampler: str
    starts: list[int]
    coverage: Array


@dataclass(frozen=True)
class Share:
    """How many of some comparisons excluded 0.

    Attributes:
        found: How many.
        of: Of how many.
    """

    found: int
    of: int

    @property
    def estimate(self) -> float:
        """Their share."""
        return self.found / self.of

    @property
    def error(self) -> tuple[float, float]:
        """Its 95 % Monte-Carlo interval (Clopper and Pearson, 1934)."""
        ends = stats.binomtest(self.found, self.of).proportion_ci(0.95)
        return float(ends.low), float(ends.high)

    @property
    def figures(self) -> Figures:
        """The share with its interval, as JSON values."""
        low, high = self.error
        return {"found": self.found, "of": self.of, "mean": self.estimate, "low": low, "high": high}

    def low(self, bank_deviation: float) -> float:
        """Lower 95 % end for the law that the bank is a draw from, normal approximation.

        Args:
            bank_deviation: Standard deviation that the bank itself adds to the resampling's, `deviation_of_banks`.
        """
        return self.estimate - 1.96 * math.hypot(
            math.sqrt(self.estimate * (1 - self.estimate) / self.of), bank_deviation
        )


def roll_bank(policy: ActingPolicy, step: int, sampler: str, seeds: int, starts: int = len(TEST_SEEDS)) -> Bank:
    """Roll a policy out from published starts, each under every sampling seed.

    An episode's noise is a function of (start, sampling seed) alone.

    Args:
        policy: Chooses the actions.
        step: Its training step.
        sampler: How it denoises, in words.
        seeds: Number of sampling seeds.
        starts: Number of starts.
    """
    names, states = published_starts()
    names, states = names[:starts], states[:starts]
    task, begin = find_task("pusht"), {"state": states}
    rows = [
        evaluate(task, policy, [int(name) * STRIDE + seed for name in names], seed=seed, checkpoint=step, options=begin)
        for seed in range(seeds)
    ]
    return Bank(step, sampler, names.tolist(), np.array([[row.metrics["coverage"] for row in each] for each in rows]))


def read_bank(path: Path) -> Bank:
    """Read a bank.

    Raises:
        CommandError: If the file holds none.
    """
    try:
        content = json.loads(path.read_text())
        bank = Bank(**content | {"coverage": np.array(content["coverage"], dtype=np.float64)})
    except (ValueError, KeyError, TypeError):
        raise CommandError(f"bank={path}: has no bank; name a new file to roll one out") from None
    if bank.coverage.shape[1:] != (len(bank.starts),) or not np.isfinite(bank.coverage).all():
        raise CommandError(f"bank={path}: damaged, its coverage has shape {bank.coverage.shape}; roll it out again")
    return bank


def write_bank(path: Path, bank: Bank) -> None:
    """Write a bank."""
    content = asdict(bank) | {"coverage": bank.coverage.round(6).tolist()}
    write_atomically(path, (json.dumps(content) + "\n").encode())


def plant(scores: Array, difference: float) -> Array:
    """Scores made worse: every episode loses `difference`, none falls below 0."""
    return np.clip(scores - difference, 0, 1)


def comparisons(
    a: Array, b: Array, size: int, count: int, rng: np.random.Generator, *, same_seeds: bool
) -> list[Interval]:
    """Intervals of A - B for runs of `size` seeds each, drawn without replacement from the seeds of a bank.

    Args:
        a: Scores that A draws from (seeds, starts).
        b: Scores that B draws from, the same seeds and starts; it takes none of the seeds that A took.
        size: Seeds per run.
        count: Comparisons.
        rng: Source of the draws.
        same_seeds: Whether the comparison pairs the seeds.

    Raises:
        ValueError: If there are fewer than 2 * size seeds.
    """
    if 2 * size > len(a):
        raise ValueError(f"size={size}: two runs need {2 * size} sampling seeds; the bank has {len(a)}")
    draws = (rng.permutation(len(a)) for _ in range(count))
    return [
        interval(difference_arms(a[drawn[:size]], b[drawn[size : 2 * size]], same_seeds=same_seeds)) for drawn in draws
    ]


def excluding_zero(found: Sequence[Interval]) -> Share:
    """How many intervals exclude 0."""
    return Share(sum(each.excludes_zero for each in found), len(found))


def student_power(seed_means: Array, difference: float, size: int, *, same_seeds: bool) -> float:
    """Power of Student's t test at the 5 % level, for normal seed means that vary as these do.

    The interval is this test wherever starts make no difference to A - B.

    Args:
        seed_means: Mean score of each sampling seed.
        difference: True difference of the two runs.
        size: Seeds per run.
        same_seeds: Whether seeds are paired (size - 1 degrees of freedom) or not (2 size - 2).
    """
    degrees = size - 1 if same_seeds else 2 * size - 2
    away = difference / math.sqrt(2 * np.var(seed_means, ddof=1) / size)
    quantile = stats.t.ppf(1 - LEVEL / 2, degrees)
    return float(stats.nct.sf(quantile, degrees, away) + stats.nct.cdf(-quantile, degrees, away))


@cache
def deviation_of_banks(seeds: int, size: int, *, same_seeds: bool, banks: int = 200, draws: int = 2000) -> float:
    """How far a bank moves the share of rejections away from the share over all banks: standard deviation.

    However often one bank is resampled, its few seeds are one draw of their law. Simulated with normal seed means and
    Student's t test, less the variance of the resampling.

    Args:
        seeds: Seeds of a bank.
        size: Seeds per run.
        same_seeds: Whether they are paired.
        banks: Simulated banks.
        draws: Comparisons of each.
    """
    rng = np.random.default_rng(0)
    test = stats.ttest_rel if same_seeds else partial(stats.ttest_ind, equal_var=False)

    def rate() -> float:
        drawn = rng.permuted(np.tile(rng.standard_normal(seeds), (draws, 1)), axis=1)
        return float(np.mean(test(drawn[:, :size], drawn[:, size : 2 * size], axis=1).pvalue < LEVEL))

    rates = [rate() for _ in range(banks)]
    middle = np.mean(rates)
    return math.sqrt(max(0.0, float(np.var(rates, ddof=1) - middle * (1 - middle) / draws)))


def whole_bank(a: Array, b: Array, *, same_seeds: bool) -> Arms:
    """Arms of A - B over all seeds of a bank; paired, every seed of A with every other one of B."""
    if not same_seeds:
        return difference_arms(a, b, same_seeds=False)
    i, j = np.nonzero(~np.eye(len(a), dtype=bool))
    return difference_arms(a[i], b[j], same_seeds=True)


def examine(bank: Bank, sizes: Sequence[int], difference: float, count: int, seed: int) -> Figures:
    """Null and planted comparisons of every size and pairing.

    Args:
        bank: What a policy scores.
        sizes: Seeds per run.
        difference: What every episode of B loses.
        count: Comparisons of each kind.
        seed: Seed of the draws.
    """
    a, b = bank.coverage, plant(bank.coverage, difference)
    planted = float(a.mean() - b.mean())
    cells = []
    for pairing, same_seeds in PAIRINGS.items():
        needed = episodes_needed(whole_bank(a, b, same_seeds=same_seeds)).seeds
        for size in sorted({*sizes, *([int(needed)] if needed <= len(a) // 2 else [])}):
            rng = np.random.default_rng([seed, size, same_seeds])
            null = excluding_zero(comparisons(a, a, size, count, rng, same_seeds=same_seeds))
            power = excluding_zero(comparisons(a, b, size, count, rng, same_seeds=same_seeds))
            spread = deviation_of_banks(len(a), size, same_seeds=same_seeds)
            cells.append(
                {
                    "pairing": pairing,
                    "seeds": size,
                    "needed_seeds": int(needed) if math.isfinite(needed) else None,
                    "rejected": null.figures,
                    "deviation_of_banks": spread,
                    "at_most_5_percent": null.low(spread) <= LEVEL,
                    "found": power.figures,
                    "student_power": student_power(a.mean(1), planted, size, same_seeds=same_seeds),
                }
            )
    return {
        "step": bank.step,
        "sampler": bank.sampler,
        "mean_coverage": float(a.mean()),
        "deviation_within_start": float(np.sqrt(a.var(axis=0, ddof=1).mean())),
        "deviation_of_seed_means": float(a.mean(1).std(ddof=1)),
        "planted": planted,
        "cells": cells,
        "starts": bank.starts,
        "coverage": a.tolist(),
    }


def measure(options: dict[str, Any]) -> Findings:
    """Examine every bank, rolling out those that do not exist yet."""
    require_positive(options, ("comparisons", "seeds", "sampling_steps"))
    sizes = parse_range("sizes", options["sizes"])
    if not 0 < options["difference"] < 1:
        raise CommandError(f"difference={options['difference']}: needs a share of the goal between 0 and 1")
    if min(sizes) < 2:
        raise CommandError(f"sizes={options['sizes']}: needs 2 seeds or more; one has no interval over seeds")
    banks = _banks(options)
    least = min(len(bank.coverage) for bank in banks.values())
    if 2 * max(sizes) > least:
        raise CommandError(f"sizes={options['sizes']}: two runs of {max(sizes)} seeds need {2 * max(sizes)}; "
                           f"a bank has {least}")  # fmt: skip
    asked = (options["difference"], options["comparisons"], options["seed"])
    figures = {
        "difference": options["difference"],
        "comparisons": options["comparisons"],
        "banks": {name: examine(bank, sizes, *asked) for name, bank in banks.items()},
    }
    return Findings(figures, describe(figures), draw(figures))


def _banks(options: dict[str, Any]) -> dict[str, Bank]:
    """The banks by name: read, or rolled out once all that could be wrong has been looked at."""
    files = [expanded(part) for part in options["bank"].split(",")]
    places = [expanded(part) for part in options["checkpoint"].split(",")] if options["checkpoint"] else []
    if len({file.stem for file in files}) < len(files) or len(files) > len(COLOURS):
        raise CommandError(f"bank={options['bank']}: needs 1 to {len(COLOURS)} files of different names")
    for index, file in enumerate(files):
        if not file.exists() and index >= len(places):
            raise CommandError(f"bank={file} does not exist, and checkpoint= names none to roll out instead")
    solver = Solver("ddim", options["sampling_steps"])
    agents = {}
    for file, place in zip(files, places, strict=False):
        if not file.exists():
            require_writable("bank", file)
            checkpoint = read_checkpoint(place)
            agents[file] = load_agent(checkpoint, solver), checkpoint.step
    banks = {file: read_bank(file) for file in files if file not in agents}
    for file, (agent, step) in agents.items():
        banks[file] = roll_bank(agent, step, f"{solver.name}, {solver.steps} steps", options["seeds"])
        write_bank(file, banks[file])
    return {file.stem: banks[file] for file in files}


def describe(figures: Figures) -> str:
    """The verdict, and a table for each bank."""
    cells = [cell for bank in figures["banks"].values() for cell in bank["cells"]]
    kept = all(cell["at_most_5_percent"] for cell in cells)
    verdict = "At most 5 % within Monte-Carlo error everywhere" if kept else "**More than 5 % somewhere**"
    beyond = sum(cell["rejected"]["low"] > LEVEL for cell in cells)
    parts = [
        f"""\
{figures["comparisons"]:,} comparisons of each kind; planted: {figures["difference"]:g} of the score. {verdict}, the
bank's own draw included; the largest share of rejections is {max(cell["rejected"]["mean"] for cell in cells):.1%}. By
the resampling alone {beyond} of {len(cells)} are above 5 %."""
    ]
    for name, bank in figures["banks"].items():
        seeds, starts = len(bank["coverage"]), len(bank["starts"])
        parts.append(f"""\
### {name}

Step {bank["step"]:,}, {bank["sampler"]}, {starts} starts x {seeds} sampling seeds: mean score
{bank["mean_coverage"]:.3f}, standard deviation {bank["deviation_within_start"]:.3f} within a start and
{bank["deviation_of_seed_means"]:.4f} between the means of seeds. Planted, after clipping: {bank["planted"]:.4f}.""")
        parts.append(table(COLUMNS, bank["cells"]))
    return "\n\n".join(parts)


def draw(figures: Figures) -> Figure:
    """Shares of rejections and of detections against seeds per run, for every bank and pairing."""
    title = (
        f"{figures['comparisons']:,} comparisons each; bars: 95 %, for the resampling and, on the left, for the bank"
    )
    figure, axes = panels(2, title=title)
    plain(axes[0], "nothing differs: share that shows a difference\n(dashed: 5 %)", "sampling seeds per run")
    points = f"{100 * figures['difference']:g} points"
    plain(
        axes[1], f"B is {points} worse (lines: Student's t test,\ndotted paired, dashed unpaired)", axes[0].get_xlabel()
    )
    styles = {"paired": ("o", ":", -0.1), "unpaired": ("s", "--", 0.1)}
    for colour, (name, bank) in zip(COLOURS, figures["banks"].items(), strict=False):
        for pairing, (marker, line, offset) in styles.items():
            cells = [cell for cell in bank["cells"] if cell["pairing"] == pairing]
            sizes = np.array([cell["seeds"] for cell in cells])
            look = {"marker": marker, "color": colour, "label": f"{name}, {pairing}"}
            _draw_shares(axes[0], sizes + offset, cells, "rejected", look)
            _draw_shares(axes[1], sizes + offset, cells, "found", look)
            axes[1].plot(sizes, [cell["student_power"] for cell in cells], line, color=colour, linewidth=1)
    axes[0].axhline(LEVEL, color=GREY, linewidth=1, linestyle="--")
    axes[0].set_ylim(0, 0.12)
    axes[1].set_ylim(0, 1.02)
    for panel in axes:
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    legend(axes[0], "upper left")
    return figure


def _draw_shares(axes: Axes, at: Array, cells: Sequence[Figures], key: str, look: Figures) -> None:
    """Shares of one kind against seeds per run, with their 95 % intervals."""
    middle = np.array([cell[key]["mean"] for cell in cells])
    ends = np.array([[cell[key]["low"] for cell in cells], [cell[key]["high"] for cell in cells]])
    bank = np.array([1.96 * cell["deviation_of_banks"] if key == "rejected" else 0.0 for cell in cells])
    filled, span = look["color"] if look["marker"] == "o" else "white", np.hypot(ends - middle, bank)
    axes.errorbar(at, middle, span, linestyle="", markerfacecolor=filled, markersize=5, capsize=2, **look)


OPTIONS = {
    "bank": Option(str, "runs/benchmarks/bank.json", "files of banks, separated by commas"),
    "checkpoint": Option(str, None, "checkpoints to roll out where a bank does not exist, in the order of bank="),
    "seeds": Option(COUNT, 20, "sampling seeds of a new bank"),
    "sampling_steps": Option(COUNT, 10, "DDIM steps of a new bank"),
    "sizes": Option(str, "3..5", "seeds per run"),
    "difference": Option(float, 0.05, "score that every episode of B loses"),
    "comparisons": Option(COUNT, 2000, "comparisons of each kind"),
    "seed": Option(whole(0, 2**63 - 1), 0, "seed of the draws"),
}
EXPERIMENT = program(__name__, __doc__, measure, OPTIONS)
