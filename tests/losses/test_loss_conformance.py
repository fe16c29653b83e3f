"""What every loss owes its users. A new loss adds one row to `loss_rows`, and all of this is asked of it."""

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_rows import ROWS, B, C, T, example, slow_but_for_one_of_each_engine, takes

import jaxmetric
from jaxmetric import mining
from jaxmetric.references import References


def rows_with(condition: Callable[[Any], bool], choose: Callable[..., Any] = list) -> Any:
    return pytest.mark.parametrize("name", choose(name for name, row in ROWS.items() if condition(row)))


every_loss = pytest.mark.parametrize("name", ROWS)
# Where a test compiles more than the program that all tests of a loss share.
by_engine = partial(rows_with, choose=slow_but_for_one_of_each_engine)
every_loss_by_engine = by_engine(lambda row: True)
every_loss_with_references = by_engine(lambda row: takes(row, "references"))
every_loss_with_pairs = by_engine(lambda row: takes(row, "pairs"))
every_class_loss = rows_with(lambda row: row.class_vectors)
few = settings(max_examples=5)
seeds = st.integers(0, 2**32 - 1)


@cache
def compiled(name: str) -> Callable[..., Any]:
    """`(parameters, embeddings, labels, where, weights)` to `((loss, stats), (d parameters, d embeddings))`."""

    def loss(parameters, embeddings, labels, where, weights):
        return ROWS[name].call(parameters, embeddings, labels, where=where, weights=weights, has_aux=True)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


@cache
def compiled_without_masks(name: str) -> Callable[..., Any]:
    """`(parameters, embeddings, labels)` to `(loss, (d parameters, d embeddings))`, for batches of other sizes."""
    return jax.jit(jax.value_and_grad(ROWS[name].call, argnums=(0, 1)))


def value_and_gradients(name, parameters, embeddings, labels, where=None, weights=None):
    where = np.ones(len(embeddings), bool) if where is None else where
    weights = np.ones(len(embeddings), np.float32) if weights is None else np.float32(weights)
    (loss, _), gradients = compiled(name)(parameters, embeddings, labels, where, weights)
    return jax.device_get((loss, gradients))


def assert_close(name, actual, expected, tolerance=None):
    tolerance = max(ROWS[name].tolerance, tolerance or 0)
    scale = max((np.abs(x).max() for x in jax.tree.leaves(expected) if np.size(x)), default=0)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=tolerance, atol=2 * tolerance * scale), actual, expected)


def assert_finite(result):
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(result))


def assert_zero(result):
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), result)


def test_every_exported_loss_has_a_row():
    exported = {name for name in jaxmetric.__all__ if name.endswith("_loss")}
    assert {row.loss.__name__ for row in ROWS.values()} == exported


@every_loss
@few
@given(seed=seeds)
def test_masking_equals_deleting(name, seed):
    parameters, embeddings, labels = example(name, seed)
    where = np.random.default_rng(seed).permutation(B) >= 3
    deleted = compiled_without_masks(name)(parameters, embeddings[where], labels[where])
    embeddings[~where], labels[~where] = np.nan, -7  # whatever masked rows hold
    loss, (of_parameters, of_embeddings) = value_and_gradients(name, parameters, embeddings, labels, where)
    assert_close(name, (loss, (of_parameters, of_embeddings[where])), deleted)
    np.testing.assert_array_equal(of_embeddings[~where], 0)


@every_loss
@few
@given(seed=seeds)
def test_weight_0_is_a_mask_and_the_scale_of_weights_is_free(name, seed):
    parameters, embeddings, labels = example(name, seed)
    weights = np.random.default_rng(seed).choice([0, 0.5, 1, 2, 3], B)
    weighed = value_and_gradients(name, parameters, embeddings, labels, None, weights)
    assert_close(name, value_and_gradients(name, parameters, embeddings, labels, None, 8 * weights), weighed)
    masked = value_and_gradients(name, parameters, embeddings, labels, weights > 0, weights + (weights == 0))
    assert_close(name, masked, weighed)


@every_loss
@few
@given(seed=seeds)
def test_the_order_of_a_batch_changes_nothing(name, seed):
    parameters, embeddings, labels = example(name, seed)
    order = np.random.default_rng(seed).permutation(B)
    loss, (of_parameters, of_embeddings) = value_and_gradients(name, parameters, embeddings, labels)
    permuted = value_and_gradients(name, parameters, embeddings[order], labels[order])
    assert_close(name, permuted, (loss, (of_parameters, of_embeddings[order])))


@rows_with(lambda row: not row.class_vectors)
@few
@given(seed=seeds)
def test_the_names_of_labels_change_nothing(name, seed):
    parameters, embeddings, labels = example(name, seed)
    renamed = np.array([[17, -3, 2**31 - 1], [5, 0, -1]])[np.arange(T), labels]
    assert_close(
        name,
        value_and_gradients(name, parameters, embeddings, renamed),
        value_and_gradients(name, parameters, embeddings, labels),
    )


@every_class_loss
def test_the_order_of_classes_changes_nothing(name):
    parameters, embeddings, labels = example(name)
    if parameters.shape[0] != C:
        pytest.skip("the parameters are shared by the classes")
    order = np.array([2, 0, 1])
    loss, (of_parameters, of_embeddings) = value_and_gradients(name, parameters, embeddings, labels)
    permuted = value_and_gradients(name, parameters[order], embeddings, np.argsort(order)[labels])
    assert_close(name, permuted, (loss, (of_parameters[order], of_embeddings)))


@every_loss
def test_everything_masked_is_0_without_gradient(name):
    parameters, embeddings, labels = example(name)
    assert_zero(value_and_gradients(name, parameters, embeddings, labels, np.zeros(B, bool)))


@every_loss
@pytest.mark.parametrize("case", ["one class", "all distinct"])
def test_degenerate_labels_are_0_where_nothing_compares_and_finite_everywhere(name, case):
    parameters, embeddings, _ = example(name)
    distinct = np.arange(B) % C if ROWS[name].class_vectors else np.arange(B)
    labels = np.stack([np.zeros(B, int) if case == "one class" else distinct] * T, axis=1)
    result = value_and_gradients(name, parameters, embeddings, labels)
    (assert_zero if case in ROWS[name].empty else assert_finite)(result)


@every_loss
@pytest.mark.parametrize("case", ["duplicates", "zeros", "huge", "tiny"])
def test_degenerate_embeddings_have_finite_losses_and_gradients(name, case):
    parameters, embeddings, labels = example(name)
    if case == "duplicates":
        embeddings[:] = embeddings[0]
        if parameters.ndim > 1:
            parameters[:] = parameters[:1]
    else:
        factor = {"zeros": 0, "huge": 1e8, "tiny": 1e-30}[case]
        embeddings, parameters = embeddings * np.float32(factor), parameters * np.float32(factor)
    assert_finite(value_and_gradients(name, parameters, embeddings, labels))


@every_loss
def test_a_nan_in_a_valid_row_stays_visible(name):
    parameters, embeddings, labels = example(name)
    embeddings[3, 1] = np.nan
    assert np.isnan(value_and_gradients(name, parameters, embeddings, labels)[0])


@every_loss
@pytest.mark.parametrize("weight", [-1, np.nan])
def test_an_invalid_weight_is_an_error_or_stays_visible_if_traced(name, weight):
    parameters, embeddings, labels = example(name)
    weights = np.ones(B, np.float32)
    weights[3] = weight
    assert not np.isfinite(value_and_gradients(name, parameters, embeddings, labels, None, weights)[0])
    with pytest.raises(ValueError, match=f"weights has {weight}, expected finite numbers of at least 0"):
        ROWS[name].call(parameters, embeddings, labels, weights=weights)
    masked = value_and_gradients(name, parameters, embeddings, labels, np.arange(B) != 3, weights)
    assert_finite(masked)


@every_loss_by_engine
def test_a_batch_of_one_or_none_is_finite(name):
    parameters, embeddings, labels = example(name)
    for batch in (0, 1):
        assert_finite(compiled_without_masks(name)(parameters, embeddings[:batch], labels[:batch]))


@every_loss
def test_jit_equals_eager_and_half_precision_is_computed_in_single(name):
    parameters, embeddings, labels = example(name)
    eager = ROWS[name].call(parameters, embeddings, labels)
    np.testing.assert_allclose(eager, value_and_gradients(name, parameters, embeddings, labels)[0], rtol=1e-5)
    for dtype in (jnp.bfloat16, jnp.float16):  # the last is the one that is run, too
        half = parameters.astype(dtype), embeddings.astype(dtype)
        loss, gradients = jax.eval_shape(jax.value_and_grad(ROWS[name].call, argnums=1), *half, labels)
        assert (loss.dtype, gradients.dtype) == (np.float32, dtype)
    single = ROWS[name].call(*(x.astype(np.float32) for x in half), labels)
    np.testing.assert_allclose(ROWS[name].call(*half, labels), single, rtol=1e-6)
    np.testing.assert_allclose(single, eager, rtol=0.05, atol=0.02)


@every_loss_by_engine
def test_single_precision_stays_single_if_double_is_enabled(name):
    parameters, embeddings, labels = example(name)
    with jax.enable_x64(True):
        call = partial(ROWS[name].call, where=np.ones(B, bool), weights=np.ones(B), has_aux=True)
        shapes = jax.eval_shape(call, parameters, embeddings, labels)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype(np.float32)}


@every_loss_by_engine
def test_no_implicit_promotion_of_ranks_or_dtypes_is_needed(name):
    parameters, embeddings, labels = example(name)
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        call = partial(ROWS[name].call, where=np.ones(B, bool), weights=np.ones(B, np.float32))
        for dtype in (np.float32, jnp.bfloat16):
            arguments = parameters.astype(dtype), embeddings.astype(dtype), labels.astype(np.int32)
            assert jax.eval_shape(jax.grad(call, argnums=1), *arguments).shape == embeddings.shape


@rows_with(lambda row: not row.constants_inside)
def test_gradient_is_the_finite_difference(name):
    parameters, embeddings, labels = example(name)
    rng = np.random.default_rng(2)
    signature = inspect.signature(ROWS[name].loss).parameters.values()
    hyper = {p.name: p.default for p in signature if p.kind is p.KEYWORD_ONLY and isinstance(p.default, float)}
    point = np.float64(parameters), np.float64(embeddings), jax.tree.map(np.float64, hyper)
    direction = jax.tree.map(lambda x: rng.normal(size=x.shape), point)
    step = 1e-6

    def loss(parameters, embeddings, hyper):
        return ROWS[name].call(parameters, embeddings, labels, **hyper)

    with jax.enable_x64(True):
        value_and_grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
        above, below = (
            float(value_and_grad(*jax.tree.map(lambda x, d: x + sign * step * d, point, direction))[0])  # noqa: B023
            for sign in (1, -1)
        )
        slopes = jax.tree.map(
            lambda gradient, d: np.sum(np.asarray(gradient) * d), value_and_grad(*point)[1], direction
        )
    slope = sum(jax.tree.leaves(slopes))
    assert slope != 0
    np.testing.assert_allclose(slope, (above - below) / (2 * step), rtol=3e-6)


def sharded(mesh, *arrays_and_specs):
    return tuple(jax.device_put(x, jax.NamedSharding(mesh, spec)) for x, spec in arrays_and_specs)


def on_a_mesh(name):
    """A mesh of explicit axes, and an example of 16 rows with its arrays sharded along as many axes as they have."""
    parameters, embeddings, labels = example(name, batch=16)
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    of_parameters = jax.P(*[None] * (parameters.ndim - 1), "model") if parameters.ndim > 1 else jax.P()
    specs = of_parameters, jax.P("data", "model"), jax.P("data")
    return mesh, sharded(mesh, *zip((parameters, embeddings, labels), specs, strict=True))


@every_loss_by_engine
def test_on_a_mesh_of_explicit_axes_the_gradient_is_sharded_as_the_embeddings_are(name):
    mesh, everywhere = on_a_mesh(name)
    parameters, embeddings, labels = example(name, batch=16)
    partly = sharded(mesh, (parameters, jax.P()), (embeddings, jax.P(None, "data")), (labels, jax.P()))
    for arrays, context in ((everywhere, nullcontext()), (partly, jax.set_mesh(mesh))):
        with context:
            value, gradients = jax.eval_shape(jax.value_and_grad(ROWS[name].call, argnums=(0, 1)), *arrays)
        assert value.shape == ()
        assert [x.sharding for x in gradients] == [jax.typeof(x).sharding for x in arrays[:2]]


def assert_as_on_one_device(name):
    _, arrays = on_a_mesh(name)
    value_and_grad = compiled_without_masks(name)
    expected = value_and_grad(*example(name, batch=16))
    assert_close(name, value_and_grad(*arrays), expected)
    np.testing.assert_allclose(ROWS[name].call(*arrays), expected[0], rtol=max(ROWS[name].tolerance, 1e-5))


@pytest.mark.parametrize("name", ["quadruplet", "triplet, all", "smooth AP", "multi-similarity", "soft triple"])
def test_on_a_mesh_of_explicit_axes_value_and_gradient_are_those_of_one_device(name):
    assert_as_on_one_device(name)


@pytest.mark.slow
@every_loss
def test_on_a_mesh_of_explicit_axes_all_values_and_gradients_are_those_of_one_device(name):
    assert_as_on_one_device(name)


@every_loss_by_engine
def test_on_a_mesh_of_explicit_axes_every_array_may_be_sharded(name):
    parameters, embeddings, labels = example(name, batch=16)
    labels = labels[:, :1]
    arrays = {"where": np.arange(16) % 3 > 0, "weights": np.ones(16, np.float32), "pairs": np.ones((16, 16), bool)}
    arrays["references"] = References(embeddings, labels, arrays["where"], arrays["weights"], np.arange(16))
    arrays = {option: array for option, array in arrays.items() if takes(ROWS[name], option)}
    mesh = jax.make_mesh((8,), ("data",))
    embeddings, labels, arrays = jax.device_put((embeddings, labels, arrays), jax.NamedSharding(mesh, jax.P("data")))

    def loss(embeddings):
        return ROWS[name].call(parameters, embeddings, labels, has_aux=True, **arrays)

    (value, stats), gradient = jax.eval_shape(jax.value_and_grad(loss, has_aux=True), embeddings)
    assert (value.shape, gradient.sharding) == ((), jax.typeof(embeddings).sharding)


@pytest.mark.slow
@every_loss
def test_vmap_over_seeds_is_a_loop(name):
    examples = [example(name, seed) for seed in range(3)]
    stacked = [np.stack(each) for each in zip(*examples, strict=True)]
    losses = jax.jit(jax.vmap(ROWS[name].call))(*stacked)
    loop = [ROWS[name].call(*each) for each in examples]
    np.testing.assert_allclose(losses, loop, rtol=1e-5)


@pytest.mark.slow
@every_loss
def test_goes_through_scan_and_checkpoint(name):
    parameters, embeddings, labels = example(name)
    gradient = jax.grad(jax.checkpoint(partial(ROWS[name].call, labels=labels)), argnums=1)

    def descend(x):
        return jax.lax.scan(lambda x, _: (x - 0.1 * gradient(parameters, x), None), x, length=3)[0]

    assert jax.eval_shape(descend, embeddings).shape == embeddings.shape


@every_loss_by_engine
def test_reductions_are_quotients_of_the_stats(name):
    parameters, embeddings, labels = example(name)
    call = partial(ROWS[name].call, parameters, embeddings, labels, weights=np.linspace(0, 2, B, dtype=np.float32))
    loss, stats = call(has_aux=True)
    total, valid, active = map(np.asarray, stats[:3])  # of a loss of two terms, two of each
    assert np.all((active > 0) & (active <= valid * (1 + 1e-6)))
    np.testing.assert_allclose(loss, np.sum(total / valid), rtol=1e-5)
    np.testing.assert_allclose(call(reduction="mean_active"), np.sum(total / active), rtol=1e-5)
    np.testing.assert_allclose(call(reduction="sum"), np.sum(total), rtol=1e-5)
    if ROWS[name].unreduced:
        each = call(reduction="none")
        assert each.ndim == 1
        np.testing.assert_allclose(each.sum(), np.sum(total), rtol=1e-5)


@pytest.mark.slow
@every_loss_with_references
def test_references_that_are_the_batch_itself_change_nothing(name):
    parameters, embeddings, labels = example(name)
    column = labels[:, 0]

    def against_itself(embeddings):
        references = References(embeddings, column, own=jnp.arange(B))
        return ROWS[name].call(parameters, embeddings, column[:, None], references=references)

    loss, gradient = jax.jit(jax.value_and_grad(against_itself))(embeddings)
    expected = value_and_gradients(name, parameters, embeddings, np.stack([column] * T, axis=1))
    assert_close(name, (loss, gradient), (expected[0], expected[1][1]))


@every_loss_with_references
def test_masked_references_equal_deleted_ones(name):
    parameters, embeddings, labels = example(name)
    _, gallery, of_gallery = example(name, seed=1)
    kept = np.arange(B) % 3 > 0
    call = jax.jit(partial(ROWS[name].call, parameters, embeddings, labels[:, :1]))
    deleted = call(references=References(gallery[kept], of_gallery[kept, :1]))
    gallery[~kept], of_gallery[~kept] = np.nan, -7
    masked = call(references=References(gallery, of_gallery[:, :1], where=kept))
    assert float(deleted) > 0
    assert_close(name, masked, deleted)
    np.testing.assert_array_equal(call(references=References(gallery, of_gallery[:, :1], where=kept & False)), 0)


@every_loss_with_pairs
def test_pairs_outside_of_the_mask_are_excluded(name):
    parameters, embeddings, labels = example(name)
    call = partial(ROWS[name].call, parameters, embeddings, labels)
    np.testing.assert_allclose(call(pairs=np.ones((B, B), bool)), call(), rtol=1e-6)
    assert call(pairs=np.zeros((B, B), bool)) == 0
    kept = np.arange(B) % 4 > 0  # rows and columns left out are examples masked
    masked = call(where=kept)
    np.testing.assert_allclose(call(pairs=kept[:, None] & kept[None, :]), masked, rtol=1e-5)


@pytest.mark.slow
@rows_with(lambda row: takes(row, "distance") or takes(row, "similarity"))
def test_a_given_matrix_gives_the_loss_of_the_named_function(name):
    if ROWS[name].loss is jaxmetric.centroid_triplet_loss:
        pytest.skip("its distances are to centroids, which it makes itself")
    parameters, embeddings, labels = example(name)
    argument = "distance" if takes(ROWS[name], "distance") else "similarity"
    function = jaxmetric.pairwise_cosine_distance if argument == "distance" else jaxmetric.pairwise_cosine_similarity
    call = partial(ROWS[name].call, parameters, labels=labels)
    named = call(embeddings, **{argument: "cosine"})
    np.testing.assert_allclose(call(embeddings, **{argument: function}), named, rtol=1e-5)
    np.testing.assert_allclose(call(embeddings, **{argument: function(embeddings)}), named, rtol=1e-5)
    np.testing.assert_allclose(call(None, **{argument: function(embeddings)}), named, rtol=1e-5)


def plain_cosine(x, y):
    x, y = (rows / jnp.sqrt(jnp.sum(rows**2, axis=1, keepdims=True)) for rows in (x, y))
    return 0.5 * x @ y.T


@pytest.mark.slow
@rows_with(lambda row: takes(row, "distance") or takes(row, "similarity"))
def test_masked_rows_and_pairs_never_reach_a_function_or_matrix_that_is_not_safe(name):
    parameters, embeddings, labels = example(name)
    argument = "distance" if takes(ROWS[name], "distance") else "similarity"
    call, where = partial(ROWS[name].call, parameters), np.arange(B) % 4 > 0
    function = plain_cosine if argument == "similarity" else lambda x, y: 1 - plain_cosine(x, y)
    gradient = jax.jit(jax.grad(lambda x: call(x, labels, where=where, **{argument: function})))(embeddings)
    assert_finite(gradient)
    assert np.any(gradient)
    if takes(ROWS[name], "pairs"):
        matrix = function(embeddings, embeddings) + np.diag(np.full(B, np.nan, np.float32))
        pairs = ~np.eye(B, dtype=bool)
        value_and_grad = jax.jit(jax.value_and_grad(lambda m: call(None, labels, pairs=pairs, **{argument: m})))
        assert_finite(value_and_grad(matrix))


def takes_masks(row):
    return takes(row, "pairs") and row.loss is not jaxmetric.chen_quadruplet_loss


@by_engine(takes_masks)
def test_masks_of_positives_and_negatives_replace_labels(name):
    parameters, embeddings, labels = example(name)
    row = ROWS[name]._replace(parameters=None)
    column, boundary = labels[:, 0], [np.float32(0.9)] if row.loss is jaxmetric.margin_loss else []
    options = inspect.getclosurevars(row.call).nonlocals.get("fixed", {})

    def call(labels, **more):
        return jax.jit(jax.value_and_grad(lambda x: row.loss(x, labels, *boundary, **(options | more))))(embeddings)

    assert_close(name, call(None, pairs=mining.label_pairs(column)), call(column))
    if takes(row, "label_weights"):  # graded: the shares of the labels that agree
        shares = np.float32((labels[:, None] == labels[None]).mean(-1))
        assert_close(name, call(None, pairs=(shares, 1 - shares)), call(labels))


@rows_with(takes_masks)
def test_masks_that_do_not_fit_are_named(name):
    _, embeddings, labels = example(name)
    loss, boundary = ROWS[name].loss, [1.0] if ROWS[name].loss is jaxmetric.margin_loss else []
    mask, other = np.eye(B, dtype=bool)[::-1], np.zeros((B, B), bool)
    for arguments, error, came in (
        ((None, {}), TypeError, r"labels is None, expected integers, or pairs=\(positives, negatives\)"),
        ((None, {"pairs": mask}), TypeError, "labels is None, expected integers"),
        ((labels[:, 0], {"pairs": (mask, other)}), ValueError, r"labels and pairs=\(positives, negatives\) are both"),
        ((None, {"pairs": (mask, other, other)}), ValueError, "pairs is a tuple of 3, expected one mask, or two"),
        ((None, {"pairs": (mask, mask)}), ValueError, "pairs has 10 pairs that are positives and negatives"),
        ((None, {"pairs": (mask, other[:3])}), ValueError, r"pairs\[1\] has shape \(3, 10\), expected \(10, 10\)"),
        ((None, {"pairs": (mask.astype(int), other)}), TypeError, r"pairs\[0\] has dtype int64, expected bool"),
    ):
        with pytest.raises(error, match=came) as raised:
            loss(embeddings, arguments[0], *boundary, **arguments[1])
        assert "\n" not in str(raised.value)


LABELS_THAT_DO_NOT_FIT = {
    "64 bits": (
        np.arange(B) << 33,
        ValueError,
        "has 77309411328, expected integers that fit int32; number the classes",
    ),
    "64 bits, negative": (-(np.arange(B) << 33), ValueError, "has -77309411328, expected integers that fit int32"),
    "unsigned": (np.full(B, 2**64 - 1, np.uint64), ValueError, "has 18446744073709551615, expected integers that fit"),
    "a list": ([2**40] * B, ValueError, "has 1099511627776, expected integers that fit int32"),
    "a list beyond 64 bits": ([2**70] * B, ValueError, "has 1180591620717411303424, expected integers that fit"),
    "text": (np.array(list("abcdefghij")), TypeError, "has dtype <U1, expected integers; number the classes from 0"),
    "objects": (np.array([0, 1] * 5, object), TypeError, "has dtype object, expected integers; number the classes"),
    "unequal rows": ([[0, 1], [2]], TypeError, "is a list of unequal rows, expected integers"),
    "nothing": (None, TypeError, "is None, expected integers"),
}


@rows_with(lambda row: takes(row, "labels"))
def test_labels_that_do_not_fit_are_refused_by_name(name):
    parameters, embeddings, labels = example(name)
    call = with_labels(name, parameters, embeddings)
    for wrong, error, came in LABELS_THAT_DO_NOT_FIT.values():
        for run in (call, lambda wrong: jax.jit(lambda: call(wrong))()):  # inside jit, too, where they are constants
            with pytest.raises(error, match=f"labels {came}") as raised:
                run(wrong)
            assert "\n" not in str(raised.value)
        if takes(ROWS[name], "references"):
            with pytest.raises(error, match=f"references.labels {came}"):
                call(labels[:, 0], references=References(embeddings, wrong))


def with_labels(name, parameters, embeddings):
    """The loss of a row as a function of labels alone, whatever they are."""
    row = ROWS[name]
    arguments = {"embeddings": embeddings, "key": jax.random.key(0), "num_quadruplets": 8, "num_anchors": 2}
    if row.parameters is not None:
        arguments |= dict.fromkeys(("centers", "proxies", "beta"), parameters)
    arguments = {argument: value for argument, value in arguments.items() if takes(row, argument)}
    return lambda labels, **options: row.loss(labels=labels, **arguments, **options)


@pytest.mark.slow
@rows_with(lambda row: not row.class_vectors)
def test_64_bit_labels_are_distinguished_if_jax_has_64_bits(name):
    parameters, embeddings, labels = example(name)
    with jax.enable_x64(True):
        small, large = (ROWS[name].call(parameters, embeddings, each) for each in (labels, labels << 33))
    assert_close(name, large, small)


@by_engine(lambda row: row.class_vectors and takes(row, "class_weights"))
def test_class_weights_multiply_the_weights_of_the_examples_of_a_class(name):
    parameters, embeddings, labels = example(name)
    class_weights = np.float32([1, 0.5, 4])
    call = partial(ROWS[name].call, parameters, embeddings, labels)
    weighed = call(class_weights=class_weights)
    assert_close(name, call(class_weights=3 * class_weights), weighed)
    assert_close(name, call(class_weights=np.ones(C, np.float32)), call())
    assert abs(weighed - call()) > 1e-4


@by_engine(lambda row: row.class_vectors and len(row.parameters) > 1)
def test_several_columns_of_labels_are_summed(name):
    parameters, embeddings, labels = example(name)
    loss, known = ROWS[name].loss, np.random.default_rng(1).random((B, T)) < 0.8
    both = (parameters, example(name, seed=1)[0][:2])
    labels[:, 1] %= 2
    labels[~known] = -1
    total, stats = loss(embeddings, labels, both, where=known, has_aux=True)
    apart = [loss(embeddings, labels[:, t], both[t], where=known[:, t], has_aux=True) for t in range(T)]
    np.testing.assert_allclose(total, sum(value for value, _ in apart), rtol=1e-5)
    np.testing.assert_allclose(stats, np.transpose([sums for _, sums in apart]), rtol=1e-5)


@rows_with(lambda row: row.class_vectors and len(row.parameters) > 1)
def test_constant_labels_out_of_range_are_named_inside_jit_in_any_column(name):
    parameters, embeddings, labels = example(name)
    labels[2, 1] = C
    for columns, vectors in ((labels, (parameters, parameters)), (labels[:, 1], parameters)):
        with pytest.raises(ValueError, match=r"labels span .*, expected classes in"):
            jax.jit(lambda x, columns=columns, vectors=vectors: ROWS[name].loss(x, columns, vectors))(embeddings)
    known = np.arange(B * T).reshape(B, T) != 2 * T + 1
    jax.eval_shape(lambda x: ROWS[name].loss(x, labels, (parameters, parameters), where=known), embeddings)


@every_loss
@pytest.mark.parametrize(
    ("argument", "value", "error", "came"),
    [
        ("embeddings", np.ones(B, np.float32), ValueError, r"embeddings has shape \(10,\), expected"),
        ("embeddings", np.ones((B, 4), int), TypeError, "embeddings has dtype int.*, expected a floating-point"),
        ("embeddings", np.ones((B - 1, 4), np.float32), ValueError, "labels has shape .*, expected"),
        ("labels", np.ones((B, T)), TypeError, "labels has dtype float.*, expected integers"),
        ("where", np.ones(B, int), TypeError, "where has dtype int.*, expected bool"),
        ("where", np.ones(B - 1, bool), ValueError, r"where has shape \(9,\), expected"),
        ("weights", np.ones(B - 1), ValueError, r"weights has shape \(9,\), expected"),
        ("reduction", "avg", ValueError, "reduction is 'avg', expected one of mean, mean_active, sum"),
    ],
)
def test_bad_arguments_are_named_in_one_line(name, argument, value, error, came):
    parameters, embeddings, labels = example(name)
    if "labels" in (argument, came.split()[0]) and not takes(ROWS[name], "labels"):
        pytest.skip("it takes no labels")
    arguments = {"embeddings": embeddings, "labels": labels, argument: value}
    with pytest.raises(error, match=came) as raised:
        ROWS[name].call(parameters, **arguments)
    assert "\n" not in str(raised.value)


def numbers_of(name):
    signature = inspect.signature(ROWS[name].loss).parameters.values()
    numbers = [p for p in signature if isinstance(p.default, (int, float)) and not isinstance(p.default, bool)]
    return [p.name for p in numbers if p.kind is p.KEYWORD_ONLY]


@every_loss
def test_hyper_parameters_that_are_not_finite_are_named(name):
    call = partial(ROWS[name].call, *example(name))
    for parameter in numbers_of(name):
        for value, error in ((np.nan, ValueError), (np.inf, ValueError), ("1", TypeError), (np.ones(2), ValueError)):
            with pytest.raises((error, TypeError), match=f"{parameter} (is|has) .*expected") as raised:
                call(**{parameter: value})
            assert "\n" not in str(raised.value)


@every_loss
def test_static_options_that_are_traced_or_unknown_are_named(name):
    signature = inspect.signature(ROWS[name].loss).parameters.values()
    call = partial(ROWS[name].call, *example(name))
    for parameter in signature:
        if parameter.kind is not parameter.KEYWORD_ONLY or parameter.name in ("reduction", "has_aux"):
            continue
        if isinstance(parameter.default, str):
            with pytest.raises(ValueError, match=f"{parameter.name} is 'nonsense', expected"):
                call(**{parameter.name: "nonsense"})
        if isinstance(parameter.default, (bool, str)) and parameter.name not in ("distance", "similarity"):
            with pytest.raises((TypeError, ValueError), match=f"{parameter.name} .*expected"):
                jax.jit(lambda traced, option=parameter.name: call(**{option: traced}))(True)
