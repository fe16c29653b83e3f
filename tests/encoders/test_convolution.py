"""Convolutions and max pooling in the forms for CPUs, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from jaxmetric.encoders import convolution as convolutions
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


CACHED = pytest.mark.parametrize("cached", [convolutions._CACHED, 0], ids=["patches", "no patches"])
SHARED_FIXTURE = [HealthCheck.function_scoped_fixture]


@CACHED
@settings(max_examples=10, suppress_health_check=SHARED_FIXTURE)
@given(data=st.data())
def test_convolutions_and_their_gradients_equal_those_of_numpy(data, cached, monkeypatch):
    monkeypatch.setattr(convolutions, "_CACHED", cached)
    check_convolution(data)


@pytest.mark.slow
@CACHED
@settings(max_examples=50, suppress_health_check=SHARED_FIXTURE)
@given(data=st.data())
def test_more_convolutions_and_their_gradients_equal_those_of_numpy(data, cached, monkeypatch):
    monkeypatch.setattr(convolutions, "_CACHED", cached)
    check_convolution(data)


def check_convolution(data):
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


@settings(max_examples=10)
@given(st.data())
def test_max_pooling_and_its_gradient_equal_those_of_numpy(data):
    check_pooling(data)


@pytest.mark.slow
@settings(max_examples=50)
@given(st.data())
def test_more_max_pooling_and_its_gradient_equal_those_of_numpy(data):
    check_pooling(data)


def check_pooling(data):
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


FORMS = {
    "dense": lambda x: convolve(x, jnp.ones((3, 3, x.shape[-1], 2)), stride=2, padding=((1, 1), (1, 1))),
    "depthwise": lambda x: convolve(
        x, jnp.ones((3, 3, 1, x.shape[-1])), stride=2, padding=((1, 1), (1, 1)), depthwise=True
    ),
    "pooling": lambda x: max_pool(x, size=3, stride=2, padding=((1, 1), (1, 1))),
}


@CACHED
@pytest.mark.parametrize("form", FORMS)
def test_the_forms_can_be_mapped_and_divided_among_devices(form, cached, monkeypatch):
    monkeypatch.setattr(convolutions, "_CACHED", cached)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 7, 6, 3)), jnp.float32)

    def loss(x):
        return jnp.sum(FORMS[form](x) ** 2)

    value, gradient = jax.value_and_grad(loss)(x)
    mapped = jax.vmap(jax.value_and_grad(lambda x: loss(x[None])))(x)
    np.testing.assert_allclose(mapped[0].sum(), value, rtol=1e-5)
    np.testing.assert_allclose(mapped[1], gradient, rtol=1e-4, atol=1e-4)

    mesh = jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    divided = jax.shard_map(
        lambda x: jax.value_and_grad(lambda x: jax.lax.psum(loss(x), "batch"))(x),
        mesh=mesh,
        in_specs=PartitionSpec("batch"),
        out_specs=(PartitionSpec(), PartitionSpec("batch")),
    )
    value_of_devices, gradient_of_devices = jax.jit(divided)(x)
    np.testing.assert_allclose(value_of_devices, value, rtol=1e-5)
    np.testing.assert_allclose(gradient_of_devices, gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(0, 7, 6, 3), (2, 0, 6, 3)])
def test_empty_images_have_results_of_the_shape_that_xla_gives(form, shape):
    result, backward = jax.vjp(FORMS[form], jnp.zeros(shape))
    assert result.shape == (shape[0], -(-shape[1] // 2), 3, 2 if form == "dense" else 3)
    assert backward(result)[0].shape == shape


@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_gradients_are_the_slopes_of_gradients(form):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 5, 3)), jnp.float32)

    def norm(x):
        return jnp.sum(jax.grad(lambda x: jnp.sum(FORMS[form](x) ** 3))(x) ** 2)

    step, direction = 1e-2, np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    slope = (norm(x + step * direction) - norm(x - step * direction)) / (2 * step)
    np.testing.assert_allclose(jnp.vdot(jax.grad(norm)(x), direction), slope, rtol=2e-2)


@pytest.mark.parametrize("form", FORMS)
def test_ranks_are_not_promoted(form):
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        jax.grad(lambda x: jnp.sum(FORMS[form](x)))(jnp.ones((2, 7, 6, 3)))


@pytest.mark.slow  # hundreds of taps
def test_large_windows_have_a_gradient():
    x = jnp.asarray(np.random.default_rng(0).permutation(400).reshape(1, 20, 20, 1), jnp.float32)
    gradient = jax.grad(lambda x: jnp.sum(max_pool(x, size=18, stride=1, padding=((0, 0), (0, 0)))))(x)
    expected, gradient_of = pooling(np.asarray(x, np.float64), 18, 1, ((0, 0), (0, 0)))
    assert_close(gradient, gradient_of(np.ones_like(expected)))
