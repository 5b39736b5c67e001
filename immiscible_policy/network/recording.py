"""The U-Net's passes as lists of calls on fixed buffers, recorded once per shape; `network.fused` replays them.

Shape legend: B rows, T steps on a convolution's input side and T' on its output's, A action dimensions, I inputs, O
outputs, K width of a convolution, E numbers of a step's embedding, G features, F of all films together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from immiscible_policy.network import kernels

Calls = list[Callable[[], object]]
LIKE = {torch.bfloat16: np.uint16(0), torch.float32: np.float32(0)}
"""A number by whose type the kernels know what lies at an address."""
FEW_ROWS = 16
"""So many rows use every number of a weight too seldom for spreading it out."""


@dataclass(eq=False)
class Value:
    """A buffer, and that of its gradient once something writes it."""

    data: Tensor
    needed: bool = True  # whether anybody wants the gradient
    gradient: Tensor | None = None


class Film(NamedTuple):
    """Scale and shift of a block (B, 2 O): numbers of the rows of all films (B, F), from one on."""

    films: Value
    start: int

    @property
    def addresses(self) -> tuple[int, int, int]:
        """Of the first row, of its gradient (0 without), and how many numbers lie from one row to the next."""
        data, gradient = self.films.data, self.films.gradient
        offset = self.start * data.element_size()
        return data.data_ptr() + offset, gradient.data_ptr() + offset if gradient is not None else 0, data.shape[1]


class Product:
    """A convolution, or the one whose adjoint a transposed convolution is, as a product with a matrix.

    Args:
        conv: The module.
        rows: B.
        before: T.
        after: T'.
    """

    def __init__(self, conv: Any, rows: int, before: int, after: int) -> None:
        outputs, inputs, kernel = conv.weight.shape
        stride, padding = conv.stride[0], int(conv.padding[0])
        whole = before <= kernel and rows > FEW_ROWS  # windows are whole rows, the matrix is (T' O, T I); or (O, K I)
        spread = (before, after, stride, padding) if whole else (kernel, 1, 1, 0)
        self.weight, self.after = conv.weight, after
        self.spread = outputs, inputs, kernel, *spread
        self.shape = spread[1] * outputs, spread[0] * inputs
        self.unfold = rows, before, inputs, after, kernel, stride, padding
        self.unfolds = not whole and kernel > 1
        self.windows = rows * (1 if whole else after), self.shape[1]


class Recording:
    """The network's calls on fixed buffers, for one shape of the sample.

    Args:
        network: The `ConditionalUnet1d`.
        shape: That of the sample (B, T, A).
        dtype: Type of the arithmetic, float32 or bfloat16.
        trains: Whether there is a backward pass.
        needs_sample: Whether that gives the gradient by the sample.
    """

    def __init__(
        self, network: Any, shape: tuple[int, ...], dtype: torch.dtype, trains: bool, needs_sample: bool
    ) -> None:
        self._dtype, self._like, self._trains = dtype, LIKE[dtype], trains
        self._scratch: dict[str, Tensor] = {}
        self._layout: Calls = []
        self._calls: Calls = []
        self._buffers: list[Tensor] = []  # which calls know by their addresses
        self._undo: Calls = []  # records the backward calls of each operation
        self._places: dict[int, tuple[int, torch.Size]] = {}  # of a parameter's gradient, by the parameter's address
        self._size = 0
        self._gradients = [0]  # the address of all parameters' gradients, new in each backward pass
        with torch.inference_mode(False), torch.no_grad():
            self._record(network, shape, needs_sample)

    def lay_out(self) -> None:
        """Read the weights."""
        _replay(self._layout)

    def embed(self, sinusoids: Tensor, features: Tensor) -> None:
        """Make all films from sinusoids (B, E) and the features (B, G); a ValueError for other shapes."""
        for name, given, own in ("step", sinusoids, self._sinusoids), ("features", features, self._features):
            if given.shape != own.data.shape:
                raise ValueError(f"{name} {tuple(given.shape)}: the network needs {tuple(own.data.shape)}")
            own.data.copy_(given)
        _replay(self._embedding)

    def denoise(self, sample: Tensor, films: Tensor | None = None) -> Tensor:
        """The noise (B, T, A) in a sample (B, T, A), with films (B, F), or those of `embed`."""
        self._sample.data.copy_(sample)
        if films is not None:
            self._films.data.copy_(films)
        _replay(self._trunk)
        return self._out.data.clone()

    def backward(self, gradient: Tensor) -> tuple[Tensor | None, Tensor, dict[int, Tensor]]:
        """The gradients by sample, features, and parameters by their addresses, from that by the noise (B, T, A)."""
        assert self._out.gradient is not None and self._features.gradient is not None
        self._out.gradient.copy_(gradient)
        flat = torch.empty(self._size)
        self._gradients[0] = flat.data_ptr()
        _replay(self._backward)
        by_parameter = {at: flat[i : i + shape.numel()].view(shape) for at, (i, shape) in self._places.items()}
        by_sample = None if self._sample.gradient is None else self._sample.gradient.to(torch.float32, copy=True)
        return by_sample, self._features.gradient.to(torch.float32, copy=True), by_parameter

    def _record(self, network: Any, shape: tuple[int, ...], needs_sample: bool) -> None:
        rows, steps, _ = shape
        _, first, _, last = network.diffusion_step_encoder
        blocks = network.blocks()
        linears = [block.cond_encoder[1] for block in blocks]
        starts = [0, *accumulate(linear.out_features for linear in linears)]
        self._sinusoids = self._value(rows, first.in_features, needed=False)
        self._features = self._value(rows, linears[0].in_features - last.out_features)
        embedded = self._linear(self._mish(self._linear(self._sinusoids, [first])), [last])
        self._films = self._linear(self._mish(self._joined(embedded, self._features)), linears)
        self._embedding, self._calls = self._calls, []
        self._sample = self._value(*shape, needed=needs_sample)
        self._out = self._walk(network, (Film(self._films, start) for start in starts))
        self._trunk, self._calls = self._calls, []
        if self._trains:
            self._gradient(self._out)
            for record in reversed(self._undo):
                record()
        self._backward = self._calls
        self._undo.clear()

    def _walk(self, network: Any, film: Iterator[Film]) -> Value:
        """The way of a sample through the modules: `ConditionalUnet1d._denoise`."""
        x, skips = self._sample, []
        for first, second, shrink in network.down_modules:
            x = self._block(second, self._block(first, x, next(film)), next(film))
            skips.append(x)
            if not isinstance(shrink, nn.Identity):
                x = self._convolution(shrink.conv, x)
        for middle in network.mid_modules:
            x = self._block(middle, x, next(film))
        for first, second, grow in network.up_modules:
            x = self._joined(x, skips.pop())
            x = self._block(second, self._block(first, x, next(film)), next(film))
            x = self._transposed(grow.conv, x)
        return self._convolution(network.final_conv[1], self._conv_block(network.final_conv[0], x))

    def _block(self, block: Any, x: Value, film: Film) -> Value:
        """A `FilmResidualBlock`: (B, T, I) to (B, T, O)."""
        hidden = self._conv_block(block.blocks[0], x, film)
        straight = block.residual_conv
        added = x if isinstance(straight, nn.Identity) else self._convolution(straight, x)
        return self._conv_block(block.blocks[1], hidden, added=added)

    def _conv_block(self, block: Any, x: Value, film: Film | None = None, added: Value | None = None) -> Value:
        """A `conv_block`, then FiLM, then a summand: (B, T, I) to (B, T, O)."""
        conv, norm, _ = block.block
        rows, steps, _ = x.data.shape
        y, out = (self._value(rows, steps, conv.out_channels) for _ in range(2))
        product, matrix = self._product(conv, x, y)
        channels, sizes = (conv.bias, norm.weight, norm.bias), (*out.data.shape, norm.num_groups)
        statistics = self._empty((rows, 2, norm.num_groups), torch.float32)
        read = [tensor.data_ptr() for tensor in (y.data, *channels)]
        film_at, _, stride = film.addresses if film else (0, 0, 0)
        added_at = added.data.data_ptr() if added else 0
        written = statistics.data_ptr(), out.data.data_ptr()
        self._call(kernels.norm_mish, *read, film_at, stride, added_at, *written, *sizes, norm.eps)

        def record() -> None:
            above = out.gradient
            assert above is not None
            y.gradient = self._room("by_y", y.data.shape)
            if film:
                self._gradient(film.films)
            by_film = film.addresses[1] if film else 0
            inputs = above.data_ptr(), *read, film_at, stride, statistics.data_ptr(), y.gradient.data_ptr()
            at = self._place(*channels)
            backward, gradients, like = kernels.norm_mish_backward, self._gradients, self._like
            self._calls.append(lambda: backward(*inputs, gradients[0] + at, by_film, *sizes, like))
            if added and added.gradient is None:
                added.gradient = above  # which nothing reads or writes any more
            elif added:
                self._calls.append(partial(self._gradient(added)[0].add_, above))
            self._undo_product(product, matrix, x, y)

        self._undo.append(record)
        return out

    def _convolution(self, conv: Any, x: Value) -> Value:
        """A convolution with its bias: (B, T, I) to (B, T', O)."""
        out = self._value(len(x.data), x.data.shape[1] // conv.stride[0], conv.out_channels)
        product, matrix = self._product(conv, x, out)
        self._bias([conv.bias], out)
        self._undo.append(lambda: self._undo_product(product, matrix, x, out))
        return out

    def _product(self, conv: Any, x: Value, y: Value) -> tuple[Product, Tensor]:
        """A convolution without its bias, into y (B, T', O)."""
        product = Product(conv, len(x.data), x.data.shape[1], y.data.shape[1])
        matrix = self._matrix(product)
        windows = self._windows(product, x.data)
        self._calls.append(partial(torch.mm, windows, matrix.t(), out=y.data.view(-1, len(matrix))))
        return product, matrix

    def _undo_product(self, product: Product, matrix: Tensor, x: Value, y: Value) -> None:
        """The gradients by x and by the weight, from that by y."""
        assert y.gradient is not None
        rows = y.gradient.view(-1, len(matrix))
        if x.needed and product.unfolds:
            by_windows = self._room("by_windows", product.windows)
            self._calls.append(partial(torch.mm, rows, matrix, out=by_windows))
            by_x, adds = self._gradient(x)
            self._call(kernels.fold, by_windows.data_ptr(), *product.unfold, adds, by_x.data_ptr())
        elif x.needed:
            self._multiply(rows, matrix, x)
        self._by_weight(product, rows, self._windows(product, x.data))

    def _transposed(self, conv: Any, x: Value) -> Value:
        """A transposed convolution with its bias, the adjoint of a convolution: (B, T', O) to (B, T, I)."""
        rows, steps, _ = x.data.shape
        out = self._value(rows, 2 * steps, conv.out_channels)
        product = Product(conv, rows, 2 * steps, steps)
        matrix = self._matrix(product)
        below = x.data.view(-1, len(matrix))
        windows = self._room("windows", product.windows) if product.unfolds else out.data.view(product.windows)
        self._calls.append(partial(torch.mm, below, matrix, out=windows))
        if product.unfolds:
            self._call(kernels.fold, windows.data_ptr(), *product.unfold, False, out.data.data_ptr())

        def record() -> None:
            assert out.gradient is not None
            windows = self._windows(product, out.gradient)
            self._multiply(windows, matrix.t(), x)
            self._by_weight(product, below, windows)

        self._undo.append(record)
        self._bias([conv.bias], out)
        return out

    def _linear(self, x: Value, linears: Sequence[nn.Linear]) -> Value:
        """The results of some linear layers, one after another: (B, I) to (B, F)."""
        out = self._value(len(x.data), sum(linear.out_features for linear in linears))
        inputs = x.data.shape[1]
        matrix = self._empty((out.data.shape[1], inputs))
        rows = matrix.split([linear.out_features for linear in linears])
        for linear, part in zip(linears, rows, strict=True):
            self._lay(linear.weight, (len(part), inputs, 1, 1, 1, 1, 0), part)
        self._calls.append(partial(torch.mm, x.data, matrix.t(), out=out.data))

        def record() -> None:
            assert out.gradient is not None
            if x.needed:
                self._multiply(out.gradient, matrix, x)
            by_matrix = self._room("by_matrix", matrix.shape)
            self._calls.append(partial(torch.mm, out.gradient.t(), x.data, out=by_matrix))
            weights = [linear.weight for linear in linears]
            self._to_parameters(kernels.gather, weights, by_matrix.data_ptr(), *matrix.shape, 1, 1, 1, 1, 0)

        self._undo.append(record)
        self._bias([linear.bias for linear in linears], out)
        return out

    def _bias(self, biases: Sequence[Tensor], x: Value) -> None:
        """Add biases (F,), one after another, to the last dimension of x."""
        together = self._empty(x.data.shape[-1:])
        for bias, part in zip(biases, together.split([len(bias) for bias in biases]), strict=True):
            self._lay(bias, (len(bias), 1, 1, 1, 1, 1, 0), part)
        self._calls.append(partial(x.data.add_, together))

        def record() -> None:
            assert x.gradient is not None
            sizes = x.data.numel() // len(together), len(together)
            self._to_parameters(kernels.column_sums, biases, x.gradient.data_ptr(), *sizes)

        self._undo.append(record)

    def _mish(self, x: Value) -> Value:
        out = self._value(*x.data.shape)
        self._call(kernels.mish, x.data.data_ptr(), x.data.numel(), out.data.data_ptr())

        def record() -> None:
            assert out.gradient is not None
            by_x, _ = self._gradient(x)
            addresses = out.gradient.data_ptr(), x.data.data_ptr()
            self._call(kernels.mish_backward, *addresses, x.data.numel(), by_x.data_ptr())

        self._undo.append(record)
        return out

    def _joined(self, *parts: Value) -> Value:
        """Parts side by side in their last dimension."""
        tensors = [part.data for part in parts]
        widths = [tensor.shape[-1] for tensor in tensors]
        out = self._value(*tensors[0].shape[:-1], sum(widths))
        self._calls.append(partial(torch.cat, tensors, dim=-1, out=out.data))

        def record() -> None:
            assert out.gradient is not None
            for part, above in zip(parts, out.gradient.split(widths, dim=-1), strict=True):
                gradient, adds = self._gradient(part)
                self._calls.append(partial(gradient.add_ if adds else gradient.copy_, above))

        self._undo.append(record)
        return out

    def _multiply(self, a: Tensor, b: Tensor, x: Value) -> None:
        """Add a product to the gradient by x."""
        by_x, adds = self._gradient(x)
        by_x = by_x.view(len(a), b.shape[1])
        self._calls.append(partial(by_x.addmm_, a, b) if adds else partial(torch.mm, a, b, out=by_x))

    def _by_weight(self, product: Product, rows: Tensor, windows: Tensor) -> None:
        by_matrix = self._room("by_matrix", product.shape)
        self._calls.append(partial(torch.mm, rows.t(), windows, out=by_matrix))
        self._to_parameters(kernels.gather, [product.weight], by_matrix.data_ptr(), *product.spread)

    def _windows(self, product: Product, x: Tensor) -> Tensor:
        if not product.unfolds:
            return x.view(product.windows)
        windows = self._room("windows", product.windows)
        self._call(kernels.unfold, x.data_ptr(), *product.unfold, windows.data_ptr())
        return windows

    def _matrix(self, product: Product) -> Tensor:
        matrix = self._empty(product.shape)
        self._lay(product.weight, product.spread, matrix)
        return matrix

    def _lay(self, parameter: Tensor, spread: tuple[int, ...], matrix: Tensor) -> None:
        address = parameter.data_ptr(), *spread, matrix.data_ptr(), self._like
        self._layout.append(partial(kernels.spread, *address))

    def _value(self, *shape: int, needed: bool = True) -> Value:
        return Value(self._empty(shape), needed)

    def _gradient(self, value: Value) -> tuple[Tensor, bool]:
        """The gradient's buffer, and whether something is in it already."""
        adds = value.gradient is not None
        if value.gradient is None:
            value.gradient = self._empty(value.data.shape)
        return value.gradient, adds

    def _empty(self, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        self._buffers.append(torch.empty(tuple(shape), dtype=dtype or self._dtype))
        return self._buffers[-1]

    def _room(self, name: str, shape: Sequence[int]) -> Tensor:
        """A buffer for what is used up before the next operation."""
        size = math.prod(shape)
        if name not in self._scratch or self._scratch[name].numel() < size:
            self._scratch[name] = self._empty((size,))
        return self._scratch[name][:size].view(shape)

    def _place(self, *parameters: Tensor) -> int:
        """Make room for the parameters' gradients, one after another; how far from the first of all [bytes]."""
        start = self._size
        for parameter in parameters:
            self._places[parameter.data_ptr()] = self._size, parameter.shape
            self._size += parameter.numel()
        return 4 * start

    def _to_parameters(self, kernel: Callable[..., object], parameters: Sequence[Tensor], *arguments: int) -> None:
        """Call a kernel that writes gradients by parameters, one after another."""
        at, gradients, like = self._place(*parameters), self._gradients, self._like
        self._calls.append(lambda: kernel(*arguments, gradients[0] + at, like))

    def _call(self, kernel: Callable[..., object], *arguments: float) -> None:
        self._calls.append(partial(kernel, *arguments, self._like))


def _replay(calls: Calls) -> None:
    for call in calls:
        call()
