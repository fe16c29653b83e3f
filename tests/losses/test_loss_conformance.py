"""What every loss owes its users, one row per loss: add a row for a new loss, and all of this is asked of it."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmetric

B, T, D, C, K = 10, 2, 4, 3, 2


class Row(NamedTuple):
    """A loss as `call(parameters, embeddings [B, D], labels [B, T], **options)`."""

    call: Callable[..., Any]
    parameters: tuple[int, ...] | None = None  # shape of its class vectors
    unreduced: bool = True  # whether it has reduction="none"
    tolerance: float = 1e-5  # of a sampled loss, relative: two draws of the same expectation


def of_columns(loss: Callable[..., Any], **fixed: Any) -> Callable[..., Any]:
    return lambda parameters, embeddings, labels, **options: loss(embeddings, labels, **fixed, **options)


def of_first_column(loss: Callable[..., Any], **fixed: Any) -> Callable[..., Any]:
    return lambda parameters, embeddings, labels, **options: loss(embeddings, labels[:, 0], **fixed, **options)


def of_class_vectors(loss: Callable[..., Any]) -> Callable[..., Any]:
    return lambda parameters, embeddings, labels, **options: loss(embeddings, labels[:, 0], parameters, **options)


ROWS = {
    "quadruplet": Row(of_columns(jaxmetric.quadruplet_loss), unreduced=False),
    "sampled quadruplet": Row(
        lambda parameters, embeddings, labels, **options: jaxmetric.sampled_quadruplet_loss(
            jax.random.key(0), embeddings, labels, num_quadruplets=20_000, **options
        ),
        tolerance=0.05,
    ),
    "triplet, all": Row(of_first_column(jaxmetric.triplet_loss)),
    "triplet, semi-hard": Row(of_first_column(jaxmetric.triplet_loss, mining="semi-hard")),
    "triplet, hard": Row(of_first_column(jaxmetric.triplet_loss, mining="hard")),
    "soft triple": Row(of_class_vectors(jaxmetric.soft_triple_loss), parameters=(C, K, D)),
    "normalized softmax": Row(of_class_vectors(jaxmetric.normalized_softmax_loss), parameters=(C, D)),
}
every_loss = pytest.mark.parametrize("name", ROWS)
every_tuple_loss = pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.parameters is None])
every_class_loss = pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.parameters is not None])


@cache
def compiled(name: str) -> Callable[..., Any]:
    """`(parameters, embeddings, labels, where, weights)` to `((loss, stats), (d parameters, d embeddings))`."""

    def loss(parameters, embeddings, labels, where, weights):
        return ROWS[name].call(parameters, embeddings, labels, where=where, weights=weights, has_aux=True)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


def value_and_gradients(name, parameters, embeddings, labels, where=None, weights=None):
    where = np.ones(len(embeddings), bool) if where is None else where
    weights = np.ones(len(embeddings), np.float32) if weights is None else np.float32(weights)
    (loss, _), gradients = compiled(name)(parameters, embeddings, labels, where, weights)
    return loss, gradients


def example(name, seed=0):
    """Class vectors (an empty array for a loss without), embeddings and labels: `[B, T]` with values below C."""
    rng = np.random.default_rng(seed)
    parameters = rng.normal(size=ROWS[name].parameters or (0,)).astype(np.float32)
    return parameters, rng.normal(size=(B, D)).astype(np.float32), rng.integers(0, C, (B, T))


def assert_close(name, actual, expected):
    tolerance = ROWS[name].tolerance
    scale = max((np.abs(x).max() for x in jax.tree.leaves(expected) if np.size(x)), default=0)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=tolerance, atol=2 * tolerance * scale), actual, expected)


def test_every_exported_loss_has_a_row():
    exported = {name for name in jaxmetric.__all__ if name.endswith("_loss")}
    called = {name for name in exported if any(names(row.call, getattr(jaxmetric, name)) for row in ROWS.values())}
    assert called == exported


def names(call, loss):
    cells = [cell.cell_contents for cell in call.__closure__ or ()]
    return loss in [cell for cell in cells if callable(cell)] or loss.__name__ in call.__code__.co_names


@every_loss
def test_masking_equals_deleting(name):
    parameters, embeddings, labels = example(name)
    where = np.array([1, 1, 0, 1, 1, 1, 0, 1, 0, 1], bool)
    deleted = value_and_gradients(name, parameters, embeddings[where], labels[where])
    embeddings[~where], labels[~where] = np.nan, -7  # whatever masked rows hold
    loss, (of_parameters, of_embeddings) = value_and_gradients(name, parameters, embeddings, labels, where)
    assert_close(name, (loss, (of_parameters, of_embeddings[where])), deleted)
    np.testing.assert_array_equal(of_embeddings[~where], 0)


@every_loss
def test_weight_0_is_a_mask_and_the_scale_of_weights_is_free(name):
    parameters, embeddings, labels = example(name)
    weights = np.array([1, 0.5, 0, 2, 1, 3, 0, 1, 0, 1])
    weighed = value_and_gradients(name, parameters, embeddings, labels, None, weights)
    assert_close(name, value_and_gradients(name, parameters, embeddings, labels, None, 8 * weights), weighed)
    masked = value_and_gradients(name, parameters, embeddings, labels, weights > 0, weights + (weights == 0))
    assert_close(name, masked, weighed)


@every_loss
def test_the_order_of_a_batch_changes_nothing(name):
    parameters, embeddings, labels = example(name)
    order = np.random.default_rng(1).permutation(B)
    loss, (of_parameters, of_embeddings) = value_and_gradients(name, parameters, embeddings, labels)
    permuted = value_and_gradients(name, parameters, embeddings[order], labels[order])
    assert_close(name, permuted, (loss, (of_parameters, of_embeddings[order])))


@every_tuple_loss
def test_the_names_of_labels_change_nothing(name):
    parameters, embeddings, labels = example(name)
    renamed = np.array([[17, -3, 2**31 - 1], [5, 0, -1]])[np.arange(T), labels]
    assert_close(
        name,
        value_and_gradients(name, parameters, embeddings, renamed),
        value_and_gradients(name, parameters, embeddings, labels),
    )


@every_class_loss
def test_the_order_of_classes_changes_nothing(name):
    parameters, embeddings, labels = example(name)
    order = np.array([2, 0, 1])
    loss, (of_parameters, of_embeddings) = value_and_gradients(name, parameters, embeddings, labels)
    permuted = value_and_gradients(name, parameters[order], embeddings, np.argsort(order)[labels])
    assert_close(name, permuted, (loss, (of_parameters[order], of_embeddings)))


@every_loss
def test_everything_masked_is_0_without_gradient(name):
    parameters, embeddings, labels = example(name)
    result = value_and_gradients(name, parameters, embeddings, labels, np.zeros(B, bool))
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), result)


@every_tuple_loss
@pytest.mark.parametrize("labels", [np.zeros((B, T), int), np.arange(B * T).reshape(B, T)], ids=["one class", "all"])
def test_nothing_to_compare_is_0_without_gradient(name, labels):
    parameters, embeddings, _ = example(name)
    result = value_and_gradients(name, parameters, embeddings, labels)
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), result)


@every_class_loss
@pytest.mark.parametrize("labels", [np.zeros(B, int), np.arange(B) % C], ids=["one class", "all classes"])
def test_class_losses_are_finite_in_degenerate_batches(name, labels):
    parameters, embeddings, _ = example(name)
    result = value_and_gradients(name, parameters, embeddings, np.stack([labels] * T, axis=1))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(result))


@every_loss
@pytest.mark.parametrize("case", ["duplicates", "zeros", "huge", "tiny"])
def test_degenerate_embeddings_have_finite_losses_and_gradients(name, case):
    parameters, embeddings, labels = example(name)
    if case == "duplicates":
        embeddings[:], parameters[:] = embeddings[0], parameters[:1] if parameters.size else 0
    else:
        factor = {"zeros": 0, "huge": 1e8, "tiny": 1e-30}[case]
        embeddings, parameters = embeddings * np.float32(factor), parameters * np.float32(factor)
    result = value_and_gradients(name, parameters, embeddings, labels)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(result))


@every_loss
def test_a_nan_in_a_valid_row_stays_visible(name):
    parameters, embeddings, labels = example(name)
    embeddings[3, 1] = np.nan
    assert np.isnan(value_and_gradients(name, parameters, embeddings, labels)[0])


@every_loss
def test_half_precision_is_computed_in_single(name):
    parameters, embeddings, labels = example(name)
    for dtype in (jnp.bfloat16, jnp.float16):
        half = parameters.astype(dtype), embeddings.astype(dtype)
        loss, gradients = jax.eval_shape(jax.value_and_grad(ROWS[name].call, argnums=1), *half, labels)
        assert (loss.dtype, gradients.dtype) == (np.float32, dtype)
    single = value_and_gradients(name, *(x.astype(np.float32) for x in half), labels)[0]
    np.testing.assert_allclose(jax.jit(ROWS[name].call)(*half, labels), single, rtol=1e-6)


@every_loss
def test_single_precision_stays_single_where_double_is_enabled(name):
    parameters, embeddings, labels = example(name)
    with jax.enable_x64(True):
        call = partial(ROWS[name].call, where=np.ones(B, bool), weights=np.ones(B), has_aux=True)
        shapes = jax.eval_shape(call, parameters, embeddings, labels)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype(np.float32)}


@every_loss
def test_implicit_rank_promotion_is_not_relied_on(name):
    with jax.numpy_rank_promotion("raise"):
        call = partial(ROWS[name].call, where=np.ones(B, bool), weights=np.ones(B, np.float32))
        assert jax.eval_shape(call, *example(name)).shape == ()


@every_loss
def test_gradient_is_the_finite_difference(name):
    parameters, embeddings, labels = example(name)
    rng = np.random.default_rng(2)
    point = np.float64(parameters), np.float64(embeddings)
    direction = tuple(rng.normal(size=x.shape) for x in point)
    step = 1e-6
    with jax.enable_x64(True):
        value_and_grad = jax.jit(jax.value_and_grad(partial(ROWS[name].call, labels=labels), argnums=(0, 1)))
        above, below = (
            float(value_and_grad(*(x + sign * step * d for x, d in zip(point, direction, strict=True)))[0])
            for sign in (1, -1)
        )
        gradients = map(np.asarray, value_and_grad(*point)[1])
    slope = sum((gradient * d).sum() for gradient, d in zip(gradients, direction, strict=True))
    np.testing.assert_allclose(slope, (above - below) / (2 * step), rtol=1e-6)


# Eager operations are compiled one by one: one loss of each kind, small, is slow enough.
@pytest.mark.parametrize("name", ["quadruplet", "soft triple"])
def test_jit_equals_eager(name):
    parameters, embeddings, labels = example(name)
    eager = ROWS[name].call(parameters, embeddings, labels)
    np.testing.assert_allclose(eager, value_and_gradients(name, parameters, embeddings, labels)[0], rtol=1e-6)


@every_loss
def test_vmap_over_seeds_is_a_loop(name):
    examples = [example(name, seed) for seed in range(3)]
    stacked = [np.stack(each) for each in zip(*examples, strict=True)]
    losses = jax.jit(jax.vmap(ROWS[name].call))(*stacked)
    loop = [value_and_gradients(name, *each)[0] for each in examples]
    np.testing.assert_allclose(losses, loop, rtol=1e-5)


@every_loss
def test_goes_through_scan_and_checkpoint(name):
    parameters, embeddings, labels = example(name)
    gradient = jax.grad(jax.checkpoint(partial(ROWS[name].call, labels=labels)), argnums=1)

    def descend(x):
        return jax.lax.scan(lambda x, _: (x - 0.1 * gradient(parameters, x), None), x, length=3)[0]

    assert jax.eval_shape(descend, embeddings).shape == (B, D)


@every_loss
def test_reductions_are_quotients_of_the_stats(name):
    parameters, embeddings, labels = example(name)
    weights = np.linspace(0, 2, B, dtype=np.float32)
    loss, stats = compiled(name)(parameters, embeddings, labels, np.ones(B, bool), weights)[0]
    assert 0 < stats.active <= stats.valid
    reductions = ["mean_active", "sum"] + ["none"] * ROWS[name].unreduced
    call = partial(ROWS[name].call, parameters, embeddings, labels, weights=weights)
    losses = jax.jit(lambda: {reduction: call(reduction=reduction) for reduction in reductions})()
    np.testing.assert_allclose(loss, stats.total / stats.valid, rtol=1e-5)
    np.testing.assert_allclose(losses["mean_active"], stats.total / stats.active, rtol=1e-5)
    np.testing.assert_allclose(losses["sum"], stats.total, rtol=1e-5)
    if ROWS[name].unreduced:
        assert losses["none"].ndim == 1
        np.testing.assert_allclose(losses["none"].sum(), stats.total, rtol=1e-5)


@every_loss
def test_an_unknown_reduction_is_named(name):
    with pytest.raises(ValueError, match="reduction is 'avg', expected one of mean, mean_active, sum"):
        ROWS[name].call(*example(name), reduction="avg")
