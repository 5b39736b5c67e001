"""Measures random batches of samples with the noise that a selector gives them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from scipy import stats
from torch import Tensor

from immiscible_policy.noise.audit.budget import divergence
from immiscible_policy.noise.audit.statistics import (
    KS,
    LEVEL,
    Correlation,
    GaussianKL,
    Moments,
    correlation,
    gaussian_kl,
    ks_normal,
    moments,
    pair_distance,
    plain_ranges,
    prior_shift,
    require_samples,
)
from immiscible_policy.noise.audit.target import ALPHA_BARS, TargetVariance, require_levels, target_variance
from immiscible_policy.noise.inputs import draw
from immiscible_policy.noise.selector import Selector

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TARGET_ROWS = 256
"""The target variance is that of a data set of at most so many samples."""


@dataclass(frozen=True)
class DistanceChange:
    """Mean Euclidean distance of samples to their noise, plain and selected, on the same batches."""

    vanilla: float  # with plain noise
    selected: float  # with the selector's
    percent: float  # 100 (selected / vanilla - 1); below 0 is nearer
    interval: tuple[float, float]  # 95% interval of `percent` over batches (ratio estimate, Student's t)


class Pairs(NamedTuple):
    """Batches of samples, with plain and with selected noise.

    Plain and selected noise start from the same generator state, so that what they share cancels in differences:
    for assignment the plain noise is the selected one before it was dealt out.
    """

    rows: Tensor  # (R, B), which samples the batches have
    x: Tensor  # (R, B, ...)
    plain: Tensor  # (R, B, ...)
    noise: Tensor  # (R, B, ...), selected
    mask: Tensor | None  # (R, B, ...), what enters the distance
    seconds: tuple[float, ...]  # (R,), duration of each selection

    def distances(self) -> tuple[Tensor, Tensor]:
        """Distance of every sample to its plain and to its selected noise (R, B) each."""
        x, mask = self.x.flatten(0, 1), None if self.mask is None else self.mask.flatten(0, 1)
        plain, selected = (pair_distance(x, noise.flatten(0, 1), mask) for noise in (self.plain, self.noise))
        return plain.view_as(self.rows), selected.view_as(self.rows)


@dataclass(frozen=True)
class Audit:
    """What a selector does to the noise of some data."""

    batches: int  # random batches measured, R
    batch_size: int  # samples in each, B
    dims: int  # numbers per sample, D
    distance: DistanceChange  # distance of pairs, before and after
    vanilla: Moments  # moments of plain noise on the same batches
    selected: Moments  # moments of the selected noise
    ks: KS  # test of all selected numbers against N(0, 1)
    gaussian: GaussianKL | None  # KL of the fitted Gaussian to N(0, I); None with no more pairs than numbers
    correlation: Correlation  # between samples and selected noise
    prior_shift: float | None  # length of the mean noise that a condition meets, at least; None without conditions
    target: TargetVariance  # variance that selection leaves in the training target, of one batch of at most 256 samples
    divergence: float | None  # the most that E KL(q(e|x) || N(0, I)) can be [nats]; None if the selector does not know
    seconds: float  # median time of one selection
    pairs: Pairs = field(repr=False, compare=False)  # the measured pairs themselves, for the plot

    def as_dict(self) -> dict[str, Any]:
        """Every figure as JSON values; what could not be measured is None."""
        return {f.name: _json_values(getattr(self, f.name)) for f in fields(self) if f.name != "pairs"}

    def metrics(self) -> dict[str, float | None]:
        """The figures that a training records, as `noise/...`."""
        variances = zip(self.target.alpha_bars, self.target.selected, strict=True)
        return {
            "noise/distance_percent": self.distance.percent,
            "noise/squared_norm": self.selected.squared_norm,
            "noise/variance": self.selected.variance,
            "noise/ks": self.ks.statistic,
            "noise/correlation": self.correlation.row_means,
            "noise/prior_shift": self.prior_shift,
            "noise/selection_ms": 1e3 * self.seconds,
        } | {f"noise/target_variance_{level:g}": variance for level, variance in variances}

    def table(self) -> str:
        """Every figure as aligned text, beside the range that plain noise keeps to in 95% of cases."""
        count, (low, high) = self.batches * self.batch_size, self.distance.interval
        lines = [
            f"{count:,} pairs: {self.batches} batches of {self.batch_size} samples, {self.dims:,} numbers each",
            f"distance of sample and noise: {self.distance.vanilla:.4f} plain, {self.distance.selected:.4f} selected, "
            f"{self.distance.percent:+.2f}% [{low:+.2f}, {high:+.2f}]",
            f"\n{'law of the noise':<32}{'plain':>12}{'selected':>12}     plain noise, 95% (*: outside)",
        ]
        ranges = plain_ranges(count, self.dims)
        for name, label in LABELS.items():
            lines.append(_row(label, getattr(self.vanilla, name), getattr(self.selected, name), *ranges[name]))
        lines.append(_row("KS distance to N(0, 1)", None, self.ks.statistic, 0, self.ks.critical))
        if self.gaussian is None:
            lines.append(f"  KL of the fitted Gaussian: not measured, it needs more than {self.dims:,} pairs")
        else:
            kl, floor, spread = self.gaussian.kl, self.gaussian.floor, 1.96 * self.gaussian.deviation
            lines.append(_row("KL of the fitted Gaussian (nats)", None, kl, floor - spread, floor + spread))
        target, heads = self.target, f"{'plain':>12}{'selected':>12}"
        lines.append(f"\n{'variance of the noise given x_t':<32}{heads}     (at most; per number)")
        for level, plain, selected in zip(target.alpha_bars, target.vanilla, target.selected, strict=True):
            lines.append(f"  alpha_bar {level:<20g}{plain:>12.4f}{selected:>12.4f}")
        lines.append(f"\ncorrelation of sample and noise: {self.correlation.coordinates:+.4f} per number, "
                     f"{self.correlation.row_means:+.4f} of the means")  # fmt: skip
        if self.prior_shift is not None:
            lengths = f"{self.prior_shift:.3f} at least, of {self.selected.squared_norm**0.5:.2f}"
            lines.append(f"mean noise of a condition: length {lengths}; plain noise has 0")
        if self.divergence is not None:
            lines.append(f"KL of a sample's noise to N(0, I): {self.divergence:.4f} nats at most")
        return "\n".join([*lines, f"time of a selection: {1e3 * self.seconds:.3f} ms (median)"])

    def plot(self) -> Figure:
        """Draw distances, marginal density, norms and target variance, plain beside selected."""
        from immiscible_policy.noise.audit.plot import audit_figure

        return audit_figure(self)


LABELS = {
    "mean": "mean",
    "variance": "variance",
    "skewness": "skewness",
    "kurtosis": "excess kurtosis",
    "squared_norm": "mean squared norm",
    "largest_mean": "largest |mean| of a coordinate",
    "smallest_variance": "smallest variance of one",
    "largest_variance": "largest variance of one",
}


def _row(label: str, plain: float | None, selected: float, low: float, high: float) -> str:
    """A line of the table: figures of plain and of selected noise, and the range that plain noise keeps to."""
    mark = " " if low <= selected <= high else "*"
    shown = f"{plain:>12.4f}" if plain is not None else " " * 12
    return f"  {label:<30}{shown}{selected:>12.4f}{mark}    {low:.4f} to {high:.4f}"


@torch.no_grad()
def audit(
    select: Selector,
    x: Tensor,
    *,
    batch_size: int = 256,
    batches: int = 8,
    condition: Tensor | None = None,
    mask: Tensor | None = None,
    step: int | None = None,
    generator: torch.Generator | None = None,
    alpha_bars: Sequence[float] = ALPHA_BARS,
) -> Audit:
    """Measure what a selector does to the noise of random batches of x.

    Args:
        select: The selector.
        x: Clean samples (N, ...), scaled as in training; all of them form each batch if N < batch_size.
        batch_size: Samples in a batch, 2 or more.
        batches: Number of batches, 2 or more.
        condition: One row per sample, passed to the selector.
        mask: Boolean, broadcasts to x: passed to the selector, and only these numbers enter the distance.
        step: Training step, for selectors with a schedule.
        generator: Source of randomness; without one the audit repeats itself exactly.
        alpha_bars: Noise levels of the target variance.

    Raises:
        ValueError: For unusable x, condition, mask, sizes or alpha_bars.
    """
    require_levels(alpha_bars)
    generator = torch.Generator(x.device).manual_seed(0) if generator is None else generator
    pairs = _draw(select, x, batch_size, batches, condition, mask, step, generator)
    rows, count, dims = pairs.rows, pairs.rows.numel(), x[0].numel()
    noise = pairs.noise.flatten(0, 1).flatten(1)
    few, of_pairs = rows[0, :TARGET_ROWS], _take(condition, rows.flatten())
    return Audit(
        batches=len(rows),
        batch_size=rows.shape[1],
        dims=dims,
        distance=_change(pairs),
        vanilla=moments(pairs.plain.flatten(0, 1)),
        selected=moments(noise),
        ks=ks_normal(noise),
        gaussian=gaussian_kl(noise) if count > dims else None,
        correlation=correlation(pairs.x.flatten(0, 1), noise.reshape(count, *x.shape[1:])),
        prior_shift=None if of_pairs is None else prior_shift(of_pairs, noise, rows.flatten()),
        target=target_variance(
            select,
            x[few],
            alpha_bars=alpha_bars,
            condition=_take(condition, few),
            mask=None if mask is None else mask.expand(x.shape)[few],
            step=step,
            generator=generator,
        ),
        divergence=divergence(select, rows.shape[1]),
        seconds=median(pairs.seconds),
        pairs=pairs,
    )


@torch.no_grad()
def distance_change(
    select: Selector,
    x: Tensor,
    *,
    batch_size: int = 256,
    batches: int = 8,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> DistanceChange:
    """Measure how much nearer to its sample the selected noise lies (2505.18521, Table 4), with `audit`'s arguments."""
    generator = torch.Generator(x.device).manual_seed(0) if generator is None else generator
    return _change(_draw(select, x, batch_size, batches, None, mask, None, generator))


def _draw(
    select: Selector,
    x: Tensor,
    batch_size: int,
    batches: int,
    condition: Tensor | None,
    mask: Tensor | None,
    step: int | None,
    generator: torch.Generator,
) -> Pairs:
    """Pairs of random batches, after refusing what cannot be measured."""
    require_samples(x, condition, mask)
    if batch_size < 2 or batches < 2:
        raise ValueError(f"batch_size={batch_size}, batches={batches}: an audit needs 2 or more of each")

    def now() -> float:
        if x.device.type == "cuda":  # the selection that this thread left running there
            torch.cuda.current_stream(x.device).synchronize()
        return time.perf_counter()

    device = generator.device
    orders = [torch.randperm(len(x), generator=generator, device=device)[:batch_size] for _ in range(batches)]
    rows = torch.stack(orders).to(x.device)
    masks = None if mask is None else mask.expand(x.shape)[rows]
    plain, noise, seconds = [], [], []
    for number, row in enumerate(rows):
        state = generator.get_state()
        plain.append(draw(x[row], generator))
        generator.set_state(state)
        batch, its_condition, its_mask = x[row], _take(condition, row), None if masks is None else masks[number]
        start = now()
        noise.append(select(batch, condition=its_condition, mask=its_mask, step=step, generator=generator))
        seconds.append(now() - start)
    return Pairs(rows, x[rows], torch.stack(plain), torch.stack(noise), masks, tuple(seconds))


def _change(pairs: Pairs) -> DistanceChange:
    """Mean distances, and the interval of their ratio."""
    plain, selected = (distances.mean(dim=1) for distances in pairs.distances())  # (R,)
    ratio = float(selected.mean() / plain.mean())
    percent = 100 * (ratio - 1)
    error = float((selected - ratio * plain).std() / plain.mean()) / math.sqrt(len(plain))
    half = 100 * error * float(stats.t.ppf((1 + LEVEL) / 2, len(plain) - 1))
    return DistanceChange(float(plain.mean()), float(selected.mean()), percent, (percent - half, percent + half))


def _take(condition: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if condition is None else condition[rows.to(condition.device)]


def _json_values(value: Any) -> Any:
    """JSON values: dataclasses as dictionaries, tuples as lists, None for what is not finite."""
    if hasattr(value, "__dataclass_fields__"):
        value = asdict(value)
    if isinstance(value, dict):
        return {key: _json_values(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_json_values(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
