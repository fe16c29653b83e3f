"""Losses of embeddings and class vectors of any length, and of labels that are no classes."""

from functools import cache, partial

import jax
import numpy as np
import pytest
from loss_rows import ROWS, B, C, example, takes

from jaxmetric import ClassShard
from jaxmetric.losses._engine import class_chunks, class_loss

# Their squares, and those of 20 times as much, are numbers of float32.
LENGTHS = (1e-15, 1e-4, 1.0, 1e4, 1e6, 1e8, 1e10)
DEVICES = 4

# Under float64 a sampled loss draws others.
CALLS = {name: row.call for name, row in ROWS.items() if row.tolerance <= 1e-5}
CALLS |= {
    f"{name}, not normalized": partial(call, similarity="dot")
    for name, call in CALLS.items()
    if takes(ROWS[name], "similarity")
    if name not in ("histogram", "instance", "circle", "tuplet margin", "intra-pair variance")  # of cosines
}


def slow(name):
    return pytest.param(name, marks=pytest.mark.slow)


@cache
def value_and_gradients(name):
    return jax.value_and_grad(CALLS[name], argnums=(0, 1))


@cache
def compiled(name):
    return jax.jit(value_and_gradients(name))


def in_double(name, parameters, embeddings, labels):
    """The value and gradients in float64, and by how much rounding the arguments to float32 can change each."""
    rng = np.random.default_rng(0)
    rounding = np.finfo(np.float32).eps / 2

    def rounded(x):
        return np.float64(x) * (1 + rounding * rng.choice([-1, 1], x.shape))

    with jax.enable_x64(True):
        exact = compiled(name)(np.float64(parameters), np.float64(embeddings), labels)
        near = [compiled(name)(rounded(parameters), rounded(embeddings), labels) for _ in range(3)]
        change = jax.tree.map(lambda x, *others: max(largest(y - x) for y in others), exact, *near)
    return jax.tree.map(np.asarray, exact), change


def largest(x):
    return float(np.max(np.abs(x), initial=0))


def assert_as_in_double(actual, exact, change):
    def close(actual, exact, change):
        if largest(exact) < float(np.finfo(np.float32).max):
            # What cancels exactly may leave the rounding of sums of ones.
            tolerance = 1e-4 * largest(exact) + 30 * change + (1e-7 if exact.ndim == 1 else 0)
            np.testing.assert_allclose(actual, exact, rtol=0, atol=tolerance)

    jax.tree.map(close, actual, exact, change)


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("soft triple", "proxy anchor", "supervised contrastive, not normalized") else slow(name)
        for name in CALLS
    ],
)
def test_at_any_length_values_and_gradients_are_those_in_double_precision(name):
    parameters, embeddings, labels = example(name.removesuffix(", not normalized"), seed=3)
    # The products of embeddings that nobody normalized are their squares.
    for length in LENGTHS[:-2] if name.endswith("not normalized") else LENGTHS:
        for of_parameters in {1.0, length} if parameters.size else {1.0}:
            point = parameters * np.float32(of_parameters), embeddings * np.float32(length)
            exact, change = in_double(name, *point, labels)
            assert_as_in_double(compiled(name)(*point, labels), exact, change)
            if length == 1e4:
                assert_as_in_double(value_and_gradients(name)(*point, labels), exact, change)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["soft triple", "hard triple", "SphereFace", "proxy anchor"])
def test_at_any_length_values_and_gradients_in_chunks_are_those_in_double_precision(name, monkeypatch):
    monkeypatch.setattr(class_chunks, "WHOLE", 1)
    monkeypatch.setattr(class_chunks, "CHUNK", 1)
    programs = class_loss._reduced, compiled(name)
    for program in programs:
        program.clear_cache()  # the sizes of chunks are no argument of them
    test_at_any_length_values_and_gradients_are_those_in_double_precision(name)
    for program in programs:
        program.clear_cache()


class_losses = [name for name, row in ROWS.items() if row.class_vectors]
of_their_own = ("soft triple", "ArcFace", "proxy anchor", "center", "margin", "manifold")  # one of each way of labels


@pytest.mark.parametrize("sharded", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [name if name in of_their_own else slow(name) for name in class_losses])
def test_a_traced_label_out_of_range_gives_nan_and_finite_gradients(name, sharded):
    if sharded and name in ("manifold", "margin"):
        pytest.skip("it takes no shard")
    parameters, embeddings, labels = example(name, seed=3)
    labels = labels[:, :1].astype(np.int32)
    options = {"class_weights": np.float32([1, 0, 2])} if takes(ROWS[name], "class_weights") else {}
    reductions = ("mean", "mean_active", "sum", "none")[: 4 if ROWS[name].unreduced else 3]

    def losses(parameters, embeddings, labels, where):
        vectors = ClassShard(parameters, "devices", C) if sharded else parameters
        call = partial(ROWS[name].call, vectors, embeddings, labels, where=where)
        every = {reduction: call(reduction=reduction, **options) for reduction in reductions}
        return call(), {"by default": call(), **every}

    function = jax.value_and_grad(losses, argnums=(0, 1), has_aux=True)
    if sharded:
        padding = ((0, DEVICES - C), *[(0, 0)] * (parameters.ndim - 1))
        parameters = np.pad(parameters, padding).reshape(DEVICES, 1, *parameters.shape[1:])
        function = jax.vmap(function, in_axes=(0, None, None, None), axis_name="devices")
    function = jax.jit(function)
    for no_class in (-1, C, 2**31 - 1, -(2**31)):
        one, every = labels.copy(), np.full_like(labels, no_class)
        one[4] = no_class
        for wrong in (one, every):
            (_, values), gradients = function(parameters, embeddings, wrong, np.ones(B, bool))
            each = values.pop("none", None)
            assert all(np.isnan(value).all() for value in values.values()), values
            assert all(np.isfinite(gradient).all() for gradient in jax.tree.leaves(gradients))
            if each is not None:
                assert np.all(np.isnan(each.reshape(-1, B)) == (wrong[:, 0] == no_class))
        masked = function(parameters, embeddings, one, np.arange(B) != 4)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(masked))
