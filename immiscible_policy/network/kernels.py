"""Compiled loops over the activations of the temporal U-Net on a CPU; `network.fused` calls them.

Arrays are given by their addresses and lie in one piece. Their numbers are float32, or bfloat16, for which NumPy has no
type: those are handled as uint16, the upper halves of float32 numbers. The last argument, `like`, has the type of the
numbers; where a docstring says float32 they are that in any case. All arithmetic is in float32.

A kernel runs on the calling thread, one row after another, so that bits depend neither on the number of threads nor on
what else runs; other Python threads go on meanwhile.

Shape legend: B rows, T steps (on a convolution's input side) and T' (on its output's), C channels, G groups, K width of
a convolution, O and I its outputs and inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic as numba_intrinsic
from numpy.typing import NDArray

Array = NDArray[Any]
intrinsic: Callable[..., Any] = numba_intrinsic
INT32, FLOAT = ir.IntType(32), ir.FloatType()
ZERO, HALF, ONE, TWO, FOUR = (np.float32(value) for value in (0.0, 0.5, 1.0, 2.0, 4.0))
LOG2_E = np.float32(1.4426950408889634)
POWERS = tuple(np.float32(0.6931471805599453**n / np.prod(np.arange(1.0, n + 1))) for n in range(7))
LARGEST, SMALLEST = np.float32(20.0), np.float32(-87.0)


def compiled(function: Callable[..., Any]) -> Any:
    """Compile at first use and keep the result on disk, where a directory for it can be written.

    The compiler may reorder sums, and contract products and sums, but must let NaN and infinity pass.
    """
    fastmath = {"contract", "reassoc", "nsz", "arcp"}
    compiler = partial(njit, nogil=True, error_model="numpy", fastmath=fastmath)
    try:
        return compiler(cache=True)(function)
    except RuntimeError as error:
        if "no locator" not in str(error):
            raise
        return compiler()(function)


@intrinsic
def widen(typing_context: Any, stored: Any) -> Any:
    """The float32 of a stored number."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        if stored == types.float32:
            return values[0]
        return builder.bitcast(builder.shl(builder.zext(values[0], INT32), INT32(16)), FLOAT)

    return types.float32(stored), generate


@intrinsic
def narrow(typing_context: Any, value: Any, like: Any) -> Any:
    """A float32 number as one of the type that `like` has, rounded to the nearest, ties to even."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        if like == types.float32:
            return values[0]
        bits = builder.bitcast(values[0], INT32)
        odd = builder.and_(builder.lshr(bits, INT32(16)), INT32(1))
        rounded = builder.add(bits, builder.add(odd, INT32(0x7FFF)))
        return builder.trunc(builder.lshr(rounded, INT32(16)), ir.IntType(16))

    return like(types.float32, like), generate


@intrinsic
def power_of_two(typing_context: Any, n: Any) -> Any:
    """2^n of a whole float32 number from -126 to 127, by its exponent's bits."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        whole = builder.fptosi(values[0], INT32)
        return builder.bitcast(builder.shl(builder.add(whole, INT32(127)), INT32(23)), FLOAT)

    return types.float32(types.float32), generate


@compiled
def exponential(x: Any) -> Any:
    """e^x within 1e-5 of itself for x in [-87, 20], constant outside: 2^n times a Taylor series in |f| <= 1/2."""
    y = min(max(x, SMALLEST), LARGEST) * LOG2_E
    n = np.floor(y + HALF)
    f = y - n
    series = POWERS[6]
    series = series * f + POWERS[5]
    series = series * f + POWERS[4]
    series = series * f + POWERS[3]
    series = series * f + POWERS[2]
    series = series * f + POWERS[1]
    series = series * f + ONE
    return series * power_of_two(n)


@compiled
def _mish(z: float) -> tuple[float, float]:
    """tanh(softplus(z)), and the slope of mish: see `norm_mish_backward`."""
    e = exponential(z)
    n = e * (e + TWO)
    inverse = ONE / (n + TWO)
    w = n * inverse
    return w, w + z * (FOUR * e * (e + ONE) * inverse * inverse)


@intrinsic
def _pointer(typing_context: Any, address: Any, like: Any) -> Any:
    """The address (int64) of numbers of the type that `like` has."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], context.get_value_type(signature.return_type))

    return types.CPointer(like)(address, like), generate


@compiled
def _array(address: int, shape: tuple[int, ...], like: float) -> Array:
    """The contiguous array at an address."""
    return carray(_pointer(address, like), shape)


@compiled
def spread(
    weight: int, outputs: int, inputs: int, kernel: int, before: int, after: int, stride: int, padding: int,
    matrix: int, like: float,
) -> None:  # fmt: skip
    """Write a convolution's weight (O, I, K) as one matrix (T', O, T, I) from all steps to all steps.

    It has T = `before` steps on the input's side and T' = `after` on the output's.
    """
    source = _array(weight, (outputs, inputs, kernel), ZERO)
    target = _array(matrix, (after, outputs, before, inputs), like)
    turned = np.empty((kernel, inputs), target.dtype)
    for o in range(outputs):
        for k in range(kernel):
            for i in range(inputs):
                turned[k, i] = narrow(source[o, i, k], like)
        for t in range(after):
            for step in range(before):
                k = step + padding - t * stride
                if 0 <= k < kernel:
                    for i in range(inputs):
                        target[t, o, step, i] = turned[k, i]
                else:
                    for i in range(inputs):
                        target[t, o, step, i] = 0


@compiled
def gather(
    matrix: int, outputs: int, inputs: int, kernel: int, before: int, after: int, stride: int, padding: int,
    weight: int, like: float,
) -> None:  # fmt: skip
    """The adjoint of `spread`: add up where a number of the weight was written to."""
    source = _array(matrix, (after, outputs, before, inputs), like)
    target = _array(weight, (outputs, inputs, kernel), ZERO)
    total = np.empty((kernel, inputs), np.float32)
    for o in range(outputs):
        total[:] = ZERO
        for t in range(after):
            for step in range(before):
                k = step + padding - t * stride
                if 0 <= k < kernel:
                    for i in range(inputs):
                        total[k, i] += widen(source[t, o, step, i])
        for i in range(inputs):
            for k in range(kernel):
                target[o, i, k] = total[k, i]


@compiled
def unfold(
    x: int, rows: int, before: int, channels: int, after: int, kernel: int, stride: int, padding: int,
    windows: int, like: float,
) -> None:  # fmt: skip
    """Write the windows (B, T', K, C) of steps that a convolution sees in x (B, T, C); zeros beyond its ends."""
    source = _array(x, (rows, before, channels), like)
    target = _array(windows, (rows, after, kernel, channels), like)
    for b in range(rows):
        for t in range(after):
            for k in range(kernel):
                step = t * stride + k - padding
                if 0 <= step < before:
                    for c in range(channels):
                        target[b, t, k, c] = source[b, step, c]
                else:
                    for c in range(channels):
                        target[b, t, k, c] = 0


@compiled
def fold(
    windows: int, rows: int, before: int, channels: int, after: int, kernel: int, stride: int, padding: int,
    adds: bool, x: int, like: float,
) -> None:  # fmt: skip
    """The adjoint of `unfold`: add windows (B, T', K, C) up where they were taken from.

    The sums are written to x (B, T, C), or added to what is there.
    """
    source = _array(windows, (rows, after, kernel, channels), like)
    target = _array(x, (rows, before, channels), like)
    total = np.empty(channels, np.float32)
    for b in range(rows):
        for step in range(before):
            total[:] = ZERO
            if adds:
                for c in range(channels):
                    total[c] = widen(target[b, step, c])
            for k in range(kernel):
                t = (step + padding - k) // stride
                if 0 <= t < after and t * stride == step + padding - k:
                    for c in range(channels):
                        total[c] += widen(source[b, t, k, c])
            for c in range(channels):
                target[b, step, c] = narrow(total[c], like)


@compiled
def norm_mish(
    y: int, bias: int, gain: int, offset: int, film: int, film_stride: int, added: int, statistics: int, out: int,
    rows: int, steps: int, channels: int, groups: int, epsilon: float, like: float,
) -> None:  # fmt: skip
    """Write scale mish(gain (y + bias - mean) / deviation + offset) + shift + added.

    Mean and deviation are those of the C / G channels of a group over all steps of a row (GroupNorm).

    Args:
        y: Output of a convolution (B, T, C), without its bias.
        bias: Of the convolution (C,), float32.
        gain: Of the normalisation (C,), float32.
        offset: Of the normalisation (C,), float32.
        film: Scale and shift of each row (2 C,), or 0 for 1 and 0.
        film_stride: Numbers from one row's to the next row's.
        added: What is added (B, T, C), or 0.
        statistics: Receives the means and inverse deviations (B, 2, G), float32.
        out: Receives the result (B, T, C).
        rows: B.
        steps: T.
        channels: C.
        groups: G.
        epsilon: What is added to the variance.
        like: A number of the type of y, film, added and out.
    """
    source, target = _array(y, (rows, steps, channels), like), _array(out, (rows, steps, channels), like)
    more, scales = _array(added, (rows, steps, channels), like), _array(film, (rows, film_stride), like)
    biases, gains = _array(bias, (channels,), ZERO), _array(gain, (channels,), ZERO)
    offsets = _array(offset, (channels,), ZERO)
    kept = _array(statistics, (rows, 2, groups), ZERO)
    width = channels // groups
    count = np.float32(width * steps)
    z = np.empty((steps, channels), np.float32)
    factor, summand = np.empty(channels, np.float32), np.empty(channels, np.float32)
    for b in range(rows):
        factor[:] = ZERO
        for t in range(steps):
            for c in range(channels):
                z[t, c] = widen(source[b, t, c]) + biases[c]
                factor[c] += z[t, c]
        for g in range(groups):
            kept[b, 0, g] = mean = factor[g * width : (g + 1) * width].sum() / count
            summand[g * width : (g + 1) * width] = mean
        factor[:] = ZERO
        for t in range(steps):
            for c in range(channels):
                factor[c] += (z[t, c] - summand[c]) ** 2
        for g in range(groups):
            variance = factor[g * width : (g + 1) * width].sum() / count
            kept[b, 1, g] = inverse = ONE / np.sqrt(variance + epsilon)
            factor[g * width : (g + 1) * width] = inverse
        for c in range(channels):
            factor[c] *= gains[c]
            summand[c] = offsets[c] - summand[c] * factor[c]
        for t in range(steps):
            for c in range(channels):
                value = z[t, c] * factor[c] + summand[c]
                z[t, c] = value * _mish(value)[0]
        if film:
            for c in range(channels):
                factor[c], summand[c] = widen(scales[b, c]), widen(scales[b, channels + c])
            for t in range(steps):
                for c in range(channels):
                    z[t, c] = z[t, c] * factor[c] + summand[c]
        if added:
            for t in range(steps):
                for c in range(channels):
                    z[t, c] += widen(more[b, t, c])
        for t in range(steps):
            for c in range(channels):
                target[b, t, c] = narrow(z[t, c], like)


@compiled
def norm_mish_backward(
    gradient: int, y: int, bias: int, gain: int, offset: int, film: int, film_stride: int, statistics: int,
    by_y: int, by_channel: int, by_film: int,
    rows: int, steps: int, channels: int, groups: int, like: float,
) -> None:  # fmt: skip
    """Gradients of what `norm_mish` was given, from that of its result (B, T, C).

    With h the normalised numbers, z = gain h + offset, e = exp(z), n = e (e + 2), w = n / (n + 2) = tanh(softplus(z)):

        mish(z) = z w,   mish'(z) = w + z 4 e (e + 1) / (n + 2)^2
        d shift = sum_t g,   d scale = sum_t g mish(z),   dz = g scale mish'(z)
        d offset = sum dz,   d gain = sum dz h
        dy = (gain dz - <gain dz> - h <gain dz h>) / deviation,   d bias = sum dy

    where <> is the mean over a row's group, and sums without an index are over rows and steps.

    Args:
        gradient: g (B, T, C).
        y: As `norm_mish` was given it, like bias, gain, offset, film, film_stride and the sizes.
        bias: See y.
        gain: See y.
        offset: See y.
        film: See y.
        film_stride: See y.
        statistics: What `norm_mish` left.
        by_y: Receives dy (B, T, C).
        by_channel: Receives d bias, d gain and d offset (3, C), float32.
        by_film: Receives d scale and d shift (B, 2 C), where there is a film.
        rows: B.
        steps: T.
        channels: C.
        groups: G.
        like: A number of the type of gradient, y, film, by_y and by_film.
    """
    source, target = _array(y, (rows, steps, channels), like), _array(by_y, (rows, steps, channels), like)
    above, scales = _array(gradient, (rows, steps, channels), like), _array(film, (rows, film_stride), like)
    biases, gains = _array(bias, (channels,), ZERO), _array(gain, (channels,), ZERO)
    offsets = _array(offset, (channels,), ZERO)
    kept, totals = _array(statistics, (rows, 2, groups), ZERO), _array(by_channel, (3, channels), ZERO)
    by_scales = _array(by_film, (rows, film_stride), like)
    width = channels // groups
    count = np.float32(width * steps)
    h, dz = np.empty((steps, channels), np.float32), np.empty((steps, channels), np.float32)
    factor, summand = np.empty(channels, np.float32), np.empty(channels, np.float32)
    first, second = np.empty(channels, np.float32), np.empty(channels, np.float32)
    totals[:] = ZERO
    for b in range(rows):
        for g in range(groups):
            factor[g * width : (g + 1) * width] = kept[b, 1, g]
            summand[g * width : (g + 1) * width] = -kept[b, 0, g] * kept[b, 1, g]
        for c in range(channels):
            summand[c] += biases[c] * factor[c]
        for t in range(steps):
            for c in range(channels):
                h[t, c] = widen(source[b, t, c]) * factor[c] + summand[c]
                dz[t, c] = widen(above[b, t, c])
        if film:
            first[:] = ZERO
            second[:] = ZERO
            for t in range(steps):
                for c in range(channels):
                    z = h[t, c] * gains[c] + offsets[c]
                    w, slope = _mish(z)
                    first[c] += dz[t, c] * (z * w)
                    second[c] += dz[t, c]
                    dz[t, c] *= slope
            for c in range(channels):
                by_scales[b, c], by_scales[b, channels + c] = narrow(first[c], like), narrow(second[c], like)
                first[c] = widen(scales[b, c])
            for t in range(steps):
                for c in range(channels):
                    dz[t, c] *= first[c]
        else:
            for t in range(steps):
                for c in range(channels):
                    dz[t, c] *= _mish(h[t, c] * gains[c] + offsets[c])[1]
        first[:] = ZERO
        second[:] = ZERO
        for t in range(steps):
            for c in range(channels):
                first[c] += dz[t, c]
                second[c] += dz[t, c] * h[t, c]
        for c in range(channels):
            totals[2, c] += first[c]
            totals[1, c] += second[c]
            first[c] *= gains[c]
            second[c] *= gains[c]
        for g in range(groups):
            first[g * width : (g + 1) * width] = first[g * width : (g + 1) * width].sum() / count
            second[g * width : (g + 1) * width] = second[g * width : (g + 1) * width].sum() / count
        summand[:] = ZERO
        for t in range(steps):
            for c in range(channels):
                dy = (dz[t, c] * gains[c] - first[c] - h[t, c] * second[c]) * factor[c]
                summand[c] += dy
                target[b, t, c] = narrow(dy, like)
        for c in range(channels):
            totals[0, c] += summand[c]


@compiled
def mish(x: int, count: int, out: int, like: float) -> None:
    """Write Mish of numbers (count,)."""
    source, target = _array(x, (count,), like), _array(out, (count,), like)
    for i in range(count):
        target[i] = narrow(widen(source[i]) * _mish(widen(source[i]))[0], like)


@compiled
def mish_backward(gradient: int, x: int, count: int, by_x: int, like: float) -> None:
    """Write the gradients by x (count,) of `mish`."""
    above, source, target = _array(gradient, (count,), like), _array(x, (count,), like), _array(by_x, (count,), like)
    for i in range(count):
        target[i] = narrow(widen(above[i]) * _mish(widen(source[i]))[1], like)


@compiled
def column_sums(x: int, rows: int, columns: int, sums: int, like: float) -> None:
    """Write the sums (columns,), float32, over the rows of x (rows, columns)."""
    source, target = _array(x, (rows, columns), like), _array(sums, (columns,), ZERO)
    target[:] = ZERO
    for row in range(rows):
        for column in range(columns):
            target[column] += widen(source[row, column])
