"""Convolutions and max pooling in forms that a CPU computes fast.

XLA computes some convolutions on a CPU many times slower than others of the same size: those of maps of a few pixels,
depthwise ones, the input gradients of strided ones and most kernel gradients. So it does the gradient of max pooling.
`convolve` and `max_pool` choose an equivalent form by shape on a CPU, and leave accelerators XLA's own.

The forms, for a kernel of k x l taps and stride s:

* patches: the neighborhood of each output pixel as a row of a matrix, and one matrix product, while the matrix fits
  into a processor's cache;
* phases: an input gradient as s x s convolutions of stride 1, one for each phase of the input's pixels;
* blocks: a kernel gradient as the sum of the products of a few examples at a time, whose pixels stay in the cache;
* shifts: a depthwise convolution as the sum of shifted products, one for each tap.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial, reduce
from typing import NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from jaxmetric.numerics import equally_varying

Padding: TypeAlias = tuple[tuple[int, int], tuple[int, int]]
Pair: TypeAlias = tuple[int, int]

_CACHED = 2_500_000  # numbers in a matrix of patches
_BLOCK = 2  # examples


def convolve(x: jax.Array, kernel: jax.Array, *, stride: int, padding: Padding, depthwise: bool = False) -> jax.Array:
    """Convolves images.

    Args:
      x: `[B, H, W, C]`.
      kernel: `[k, l, C, F]`; `[k, l, 1, C]` if depthwise.
      stride: the distance of neighboring outputs, in rows and in columns.
      padding: the zeros before and after the rows, and before and after the columns.
      depthwise: whether to convolve each channel by itself.

    Returns:
      `[B, h, w, F]`. It has no forward-mode derivatives (`jax.jvp`, `jax.hessian`), on any device.

    Example:
      >>> x = jnp.arange(9.0).reshape(1, 3, 3, 1)
      >>> convolve(x, jnp.ones((2, 2, 1, 1)), stride=1, padding=((0, 0), (0, 0)))[0, :, :, 0].tolist()
      [[8.0, 12.0], [20.0, 24.0]]
    """
    by_xla = partial(_by_xla, stride=stride, padding=padding, depthwise=depthwise)
    if x.dtype != jnp.float32 or _only_for_xla(x, _output_size(x.shape, kernel.shape, stride, padding)):
        return by_xla(x, kernel)

    def on_cpu(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return _on_cpu(*equally_varying((x, kernel)), stride, padding, depthwise)

    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=by_xla)


def _only_for_xla(x: jax.Array, size: Pair) -> bool:
    """Returns whether an array has an explicit sharding, or its results are empty."""
    return any(jax.typeof(x).sharding.spec) or not x.size or min(size) < 1


def _by_xla(x: jax.Array, kernel: jax.Array, *, stride: int, padding: Padding, depthwise: bool = False) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] if depthwise else 1,
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _on_cpu(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding, depthwise: bool) -> jax.Array:
    if depthwise:
        return _by_shifts(x, kernel, stride=stride, padding=padding)
    if _patches_fit(x.shape, kernel.shape, stride, padding):
        return _by_patches(x, kernel, stride, padding)
    return _by_xla(x, kernel, stride=stride, padding=padding)


def _on_cpu_forward(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding, depthwise: bool
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _on_cpu(x, kernel, stride, padding, depthwise), (x, kernel)


def _on_cpu_backward(
    stride: int, padding: Padding, depthwise: bool, kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    if not depthwise and _patches_fit(x.shape, kernel.shape, stride, padding):
        _, backward = jax.vjp(lambda x, kernel: _by_patches(x, kernel, stride, padding), x, kernel)
        return backward(gradient)
    transposed, forward = (kernel, _by_shifts) if depthwise else (jnp.swapaxes(kernel, 2, 3), _by_xla)
    of_x = _input_gradient(x.shape, transposed, gradient, stride, padding, forward)
    product = _product_of_shifts if depthwise else _product_of_patches
    return of_x, _kernel_gradient(x, kernel.shape, gradient, stride, padding, product)


_on_cpu.defvjp(_on_cpu_forward, _on_cpu_backward)


def _patches_fit(shape: tuple[int, ...], kernel_shape: tuple[int, ...], stride: int, padding: Padding) -> bool:
    if kernel_shape[:2] == (1, 1) and stride == 1:
        return True  # they are the pixels themselves
    size = _output_size(shape, kernel_shape, stride, padding)
    return math.prod((shape[0], *size, *kernel_shape[:3])) <= _CACHED


def _by_patches(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    size = _output_size(x.shape, kernel.shape, stride, padding)
    patches = _patches(list(_shifts(x, kernel.shape, stride, padding, size)))
    product = patches @ kernel.reshape(-1, kernel.shape[-1])
    return product.reshape(x.shape[0], *size, -1)


def _patches(shifts: list[jax.Array]) -> jax.Array:
    """Returns `[B h w, k l C]`: the pixels that each output pixel is made of."""
    taps = jnp.concatenate(shifts, axis=-1)
    return taps.reshape(-1, taps.shape[-1])


class _Convolve(Protocol):
    def __call__(self, x: jax.Array, kernel: jax.Array, *, stride: int, padding: Padding) -> jax.Array: ...


def _input_gradient(
    shape: tuple[int, ...], kernel: jax.Array, gradient: jax.Array, stride: int, padding: Padding, convolve: _Convolve
) -> jax.Array:
    """Returns `[B, H, W, C]` as one convolution of stride 1 for each phase of the rows and columns.

    Args:
      shape: `(B, H, W, C)`.
      kernel: `[k, l, F, C]`, or `[k, l, 1, C]` of a depthwise convolution.
      gradient: `[B, h, w, F]`.
      stride: of the convolution whose gradient it is.
      padding: of that convolution.
      convolve: how to convolve.
    """
    phase = partial(_phase, kernel, gradient, shape, stride=stride, padding=padding, convolve=convolve)
    if stride == 1:
        return phase((0, 0))
    return _interleaved([[phase((row, column)) for column in range(stride)] for row in range(stride)], shape, stride)


def _phase(
    kernel: jax.Array,
    gradient: jax.Array,
    shape: tuple[int, ...],
    phase: Pair,
    *,
    stride: int,
    padding: Padding,
    convolve: _Convolve,
) -> jax.Array:
    """Returns the input gradient at the pixels (phase + stride * i)."""
    rows, columns = (
        _axis_phase(phase[i], shape[1 + i], kernel.shape[i], gradient.shape[1 + i], stride, padding[i]) for i in (0, 1)
    )
    if rows.pad is None or columns.pad is None:
        return jnp.zeros((shape[0], rows.size, columns.size, kernel.shape[3]), gradient.dtype)
    taps = kernel[rows.first_tap :: stride, columns.first_tap :: stride][::-1, ::-1]
    return convolve(gradient, taps, stride=1, padding=(rows.pad, columns.pad))


class _AxisPhase(NamedTuple):
    size: int  # the number of pixels
    first_tap: int  # that meets them; every `stride`-th after it does too
    pad: Pair | None  # of the gradient; None if no tap meets them


def _axis_phase(phase: int, length: int, taps: int, outputs: int, stride: int, pad: Pair) -> _AxisPhase:
    """Describes the rows, or columns, r = phase + stride * i, which outputs o meet with tap r + pad[0] - stride * o."""
    size, first = len(range(phase, length, stride)), (phase + pad[0]) % stride
    own = range(first, taps, stride)
    if not own:
        return _AxisPhase(size, first, None)
    low, high = ((phase + pad[0] - tap) // stride for tap in (own[-1], own[0]))
    return _AxisPhase(size, first, (-low, size + high - outputs))


def _interleaved(phases: list[list[jax.Array]], shape: tuple[int, ...], stride: int) -> jax.Array:
    """Returns `[B, H, W, C]` of whose pixels every `stride`-th row and column is from one phase."""
    rows, columns = (-(-length // stride) for length in shape[1:3])
    full = [[_padded_to(each, rows, columns) for each in line] for line in phases]
    woven = jnp.stack([jnp.stack(line, axis=3) for line in full], axis=2)
    woven = woven.reshape(shape[0], rows * stride, columns * stride, -1)
    return woven[:, : shape[1], : shape[2]]


def _padded_to(x: jax.Array, rows: int, columns: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (0, rows - x.shape[1]), (0, columns - x.shape[2]), (0, 0)))


def _kernel_gradient(
    x: jax.Array,
    shape: tuple[int, ...],
    gradient: jax.Array,
    stride: int,
    padding: Padding,
    product: Callable[[list[jax.Array], jax.Array], jax.Array],
) -> jax.Array:
    """Returns the sum of the products of a block's shifts and its gradient, over blocks of a few examples."""
    size = gradient.shape[1], gradient.shape[2]

    def of_block(block: tuple[jax.Array, jax.Array]) -> jax.Array:
        return product(list(_shifts(block[0], shape, stride, padding, size)), block[1])

    count = math.gcd(x.shape[0], _BLOCK)
    blocks = tuple(each.reshape(-1, count, *each.shape[1:]) for each in (x, gradient))
    start, blocks = equally_varying((jnp.zeros((math.prod(shape[:3]), shape[3]), x.dtype), blocks))
    total, _ = lax.scan(lambda total, block: (total + of_block(block), None), start, blocks)
    return total.reshape(shape)


def _product_of_patches(shifts: list[jax.Array], gradient: jax.Array) -> jax.Array:
    patches = _patches(shifts)
    return lax.dot_general(patches, gradient.reshape(-1, gradient.shape[-1]), (((0,), (0,)), ((), ())))


def _product_of_shifts(shifts: list[jax.Array], gradient: jax.Array) -> jax.Array:
    return jnp.stack([jnp.sum(shift * gradient, axis=(0, 1, 2)) for shift in shifts])


def _by_shifts(x: jax.Array, kernel: jax.Array, *, stride: int, padding: Padding) -> jax.Array:
    size = _output_size(x.shape, kernel.shape, stride, padding)
    weights = kernel.reshape(-1, 1, 1, 1, kernel.shape[-1])
    shifts = _shifts(x, kernel.shape, stride, padding, size)
    return reduce(jnp.add, (shift * weight for shift, weight in zip(shifts, weights, strict=True)))


def _added_back(
    taps: list[jax.Array], kernel_shape: tuple[int, ...], shape: tuple[int, ...], stride: int, padding: Padding
) -> jax.Array:
    """Returns the sum `[B, H, W, C]` of what each tap gives to the pixels that it sees: the transpose of `_shifts`."""
    sides = [shape[1 + axis] + sum(padding[axis]) for axis in (0, 1)]
    zero = jnp.zeros((), taps[0].dtype)
    total = jnp.zeros((shape[0], *sides, shape[3]), taps[0].dtype)
    for place, tap in zip(_places(kernel_shape), taps, strict=True):
        ends = [first + stride * (outputs - 1) + 1 for first, outputs in zip(place, tap.shape[1:3], strict=True)]
        edges = [(first, side - end, stride - 1) for first, side, end in zip(place, sides, ends, strict=True)]
        total = total + lax.pad(tap, zero, [(0, 0, 0), *edges, (0, 0, 0)])
    top, left = padding[0][0], padding[1][0]
    return total[:, top : top + shape[1], left : left + shape[2]]


def max_pool(x: jax.Array, *, size: int, stride: int, padding: Padding) -> jax.Array:
    """Returns the largest of each `size` x `size` pixels.

    Args:
      x: `[B, H, W, C]`.
      size: the side of the window.
      stride: the distance of neighboring windows.
      padding: the border of -inf around the rows and around the columns.

    Returns:
      `[B, h, w, C]`; its gradient goes to the first of equal pixels. It has no forward-mode derivatives.

    Example:
      >>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
      >>> max_pool(x, size=2, stride=2, padding=((0, 0), (0, 0)))[0, :, :, 0].tolist()
      [[5.0, 7.0], [13.0, 15.0]]
    """

    def by_xla(x: jax.Array) -> jax.Array:
        window, strides = (1, size, size, 1), (1, stride, stride, 1)
        return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, ((0, 0), *padding, (0, 0)))

    if _only_for_xla(x, _output_size(x.shape, (size, size), stride, padding)):
        return by_xla(x)
    return lax.platform_dependent(x, cpu=lambda x: _largest(x, size, stride, padding, x.shape), default=by_xla)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _largest(x: jax.Array, size: int, stride: int, padding: Padding, shape: tuple[int, ...]) -> jax.Array:
    del shape  # of x, for the gradient
    return reduce(jnp.maximum, _windows(x, size, stride, padding))


def _largest_forward(
    x: jax.Array, size: int, stride: int, padding: Padding, shape: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Also returns which tap is the first with the largest pixel, `[B, h, w, C]`."""
    del shape
    largest, *others = _windows(x, size, stride, padding)
    first = jnp.zeros(largest.shape, jnp.uint8 if size <= 16 else jnp.int32)
    for number, tap in enumerate(others, 1):
        first = jnp.where(tap > largest, jnp.asarray(number, first.dtype), first)
        largest = jnp.maximum(largest, tap)
    return largest, first


def _largest_backward(
    size: int, stride: int, padding: Padding, shape: tuple[int, ...], first: jax.Array, gradient: jax.Array
) -> tuple[jax.Array]:
    parts = [jnp.where(first == number, gradient, 0) for number in range(size**2)]
    return (_added_back(parts, (size, size), shape, stride, padding),)


_largest.defvjp(_largest_forward, _largest_backward)


def _windows(x: jax.Array, size: int, stride: int, padding: Padding) -> Iterator[jax.Array]:
    outputs = _output_size(x.shape, (size, size), stride, padding)
    return _shifts(x, (size, size), stride, padding, outputs, fill=-jnp.inf)


def _shifts(
    x: jax.Array, shape: tuple[int, ...], stride: int, padding: Padding, size: Pair, *, fill: float = 0.0
) -> Iterator[jax.Array]:
    """Yields for each tap of a kernel the pixels `[B, h, w, C]` that it meets."""
    edges = [(before, after, 0) for before, after in ((0, 0), *padding, (0, 0))]
    x = lax.pad(x, jnp.asarray(fill, x.dtype), edges)
    for row, column in _places(shape):
        ends = row + stride * (size[0] - 1) + 1, column + stride * (size[1] - 1) + 1
        yield x[:, row : ends[0] : stride, column : ends[1] : stride]


def _places(shape: tuple[int, ...]) -> Iterator[Pair]:
    return itertools.product(range(shape[0]), range(shape[1]))


def _output_size(shape: tuple[int, ...], kernel: tuple[int, ...], stride: int, padding: Padding) -> Pair:
    rows, columns = ((shape[1 + axis] + sum(padding[axis]) - kernel[axis]) // stride + 1 for axis in (0, 1))
    return rows, columns
