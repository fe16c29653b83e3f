"""Convolutions and max pooling in the forms for CPUs, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jaxmetric.encoders.convolution import convolve, max_pool


def padded(x, padding, fill=0.0):
    return np.pad(x, ((0, 0), *padding, (0, 0)), constant_values=fill)


def views(x, size, stride):
    """Yields, for each tap of a window, its place and a view of the pixels of padded images that it meets."""
    rows, columns = x.shape[1] - size[0] + 1, x.shape[2] - size[1] + 1
    for row, column in np.ndindex(*size):
        yield (row, column), x[:, row : row + rows : stride, column : column + columns : stride]


def without(x, padding):
    (top, bottom), (left, right) = padding
    return x[:, top : x.shape[1] - bottom, left : x.shape[2] - right]


def convolution(x, kernel, stride, padding, *, depthwise):
    """The convolution, and a function that returns the gradients of both arguments."""
    x, size = padded(x, padding), kernel.shape[:2]
    forward, backward = ("bhwc,oc->bhwc", "bhwc,oc->bhwc") if depthwise else ("bhwc,cf->bhwf", "bhwf,cf->bhwc")
    of_kernel = "bhwc,bhwc->c" if depthwise else "bhwc,bhwf->cf"

    def gradients(gradient):
        x_gradient, kernel_gradient = np.zeros_like(x), np.zeros_like(kernel)
        for (place, tap), (_, sums) in zip(views(x, size, stride), views(x_gradient, size, stride), strict=True):
            sums += np.einsum(backward, gradient, kernel[place])
            kernel_gradient[place] = np.einsum(of_kernel, tap, gradient)
        return without(x_gradient, padding), kernel_gradient

    return sum(np.einsum(forward, tap, kernel[place]) for place, tap in views(x, size, stride)), gradients


def pooling(x, size, stride, padding):
    """The maximum of each window, and a function that returns the gradient: that of the first of equal pixels."""
    x = padded(x, padding, -np.inf)
    taps = np.stack([tap for _, tap in views(x, (size, size), stride)])
    first = np.argmax(taps, axis=0)

    def gradient(given):
        total = np.zeros_like(x)
        for number, (_, sums) in enumerate(views(total, (size, size), stride)):
            sums += np.where(first == number, given, 0)
        return without(total, padding)

    return taps.max(axis=0), gradient


def drawn_padding(data, most):
    before, after = st.integers(0, most), st.integers(0, most)
    return tuple((data.draw(before), data.draw(after)) for _ in range(2))


def assert_close(ours, expected):
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * max(1.0, np.abs(expected).max(initial=0)))


@settings(max_examples=60)
@given(st.data())
def test_convolutions_and_their_gradients_equal_those_of_numpy(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    size = data.draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    stride, sides = data.draw(st.integers(1, 3)), data.draw(st.tuples(st.integers(1, 16), st.integers(1, 16)))
    padding, depthwise = drawn_padding(data, max(size)), data.draw(st.booleans())
    assume(all(side + sum(pad) >= taps for side, pad, taps in zip(sides, padding, size, strict=True)))
    channels, features = data.draw(st.sampled_from([1, 3, 24])), data.draw(st.sampled_from([1, 8]))
    x = rng.normal(size=(data.draw(st.integers(1, 3)), *sides, channels))
    kernel = rng.normal(size=(*size, 1, channels) if depthwise else (*size, channels, features))
    expected, gradients = convolution(x, kernel, stride, padding, depthwise=depthwise)
    gradient = rng.normal(size=expected.shape)

    def forward(x, kernel):
        return convolve(x, kernel, stride=stride, padding=padding, depthwise=depthwise)

    ours, backward = jax.vjp(forward, jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32))
    assert_close(ours, expected)
    for each, wanted in zip(backward(jnp.asarray(gradient, jnp.float32)), gradients(gradient), strict=True):
        assert_close(each, wanted)


@settings(max_examples=30)
@given(st.data())
def test_max_pooling_and_its_gradient_equal_those_of_numpy(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    size, stride = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    sides = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    padding = drawn_padding(data, size - 1)
    assume(all(side + sum(pad) >= size for side, pad in zip(sides, padding, strict=True)))
    x = rng.integers(0, 4, size=(2, *sides, 3)).astype(float)  # with many equal pixels
    expected, gradient_of = pooling(x, size, stride, padding)
    gradient = rng.normal(size=expected.shape)
    ours, backward = jax.vjp(lambda x: max_pool(x, size=size, stride=stride, padding=padding), jnp.asarray(x))
    np.testing.assert_array_equal(ours, expected)
    assert_close(backward(jnp.asarray(gradient))[0], gradient_of(gradient))
