"""Losses whose classes are shared out among devices, beside the same losses with all classes in one place."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec
from loss_rows import slow_but_for_one_of_each_engine

import jaxmetric
from jaxmetric import ClassShard
from jaxmetric.losses._engine import class_chunks, class_loss
from jaxmetric.parallel import AXIS_NAME, average, gather

# 13 classes over 8 devices: six hold two, one holds one and a row of padding, the last padding alone.
N, B, D, K, C, FEATURES = 8, 16, 4, 2, 13, 5
SIZE = -(-C // N)

# Name: the loss, the number of centers of a class, and the hyper-parameters to differentiate by.
LOSSES = {
    "soft triple": (jaxmetric.soft_triple_loss, K, {"scale": 5.0, "gamma": 0.3, "margin": 0.1, "tau": 0.5}),
    "hard triple": (jaxmetric.hard_triple_loss, K, {"scale": 5.0, "margin": 0.1}),
    "normalized softmax": (jaxmetric.normalized_softmax_loss, None, {"scale": 5.0, "margin": 0.1}),
    "proxy NCA": (jaxmetric.proxy_nca_loss, None, {"temperature": 0.5}),
    "proxy NCA++": (partial(jaxmetric.proxy_nca_loss, positive_in_denominator=True), None, {"temperature": 0.5}),
    "proxy anchor": (jaxmetric.proxy_anchor_loss, None, {"scale": 4.0, "margin": 0.1}),
    "ArcFace": (jaxmetric.arcface_loss, None, {"scale": 8.0, "margin": 0.5}),
    "sub-center ArcFace": (jaxmetric.sub_center_arcface_loss, K, {"scale": 8.0, "margin": 0.5}),
    "CosFace": (jaxmetric.cosface_loss, None, {"scale": 8.0, "margin": 0.35}),
    "SphereFace": (jaxmetric.sphereface_loss, None, {"scale": 1.5}),
    "large-margin softmax": (jaxmetric.large_margin_softmax_loss, None, {"scale": 1.5}),
    "P2SGrad": (jaxmetric.p2sgrad_loss, None, {}),
    "center": (jaxmetric.center_loss, None, {}),
}


def example(num_centers=None, num_classes=C):
    """What devices share, all class vectors, and the batch; the last example is of no class, and masked."""
    rng = np.random.default_rng(num_classes)
    shape = (num_classes, D) if num_centers is None else (num_classes, num_centers, D)
    labels = rng.integers(0, num_classes, B)
    labels[0], labels[-1] = num_classes - 1, -1
    options = {"where": labels >= 0, "weights": np.linspace(0.5, 2, B), "class_weights": np.linspace(0, 2, num_classes)}
    return (
        {"kernel": rng.normal(size=(FEATURES, D))},
        rng.normal(size=shape),
        rng.normal(size=(B, FEATURES)),
        labels,
        options,
    )


def in_rows_of_devices(vectors, size=SIZE):
    """Class vectors with the padding that lets them divide among the devices; what it holds does not matter."""
    return np.concatenate([vectors, np.full((N * size - len(vectors), *vectors.shape[1:]), np.nan)])


def mesh():
    return Mesh(jax.devices()[:N], (AXIS_NAME,), axis_types=(AxisType.Auto,))


def on_shard_map(body):
    replicated, shared = PartitionSpec(), PartitionSpec(AXIS_NAME)
    specs = {"in_specs": (replicated, shared, shared), "out_specs": (shared, (replicated, shared))}

    def on_one(shared, vectors, features):
        value, gradients = body(shared, vectors, features)
        return value[None], gradients

    return jax.jit(jax.shard_map(on_one, mesh=mesh(), check_vma=False, **specs))


def on_checked_shard_map(body):
    replicated, shared = PartitionSpec(), PartitionSpec(AXIS_NAME)
    in_specs, out_specs = (replicated, shared, shared), (replicated, (replicated, shared))
    return jax.jit(jax.shard_map(body, mesh=mesh(), in_specs=in_specs, out_specs=out_specs))


def on_mapped_axis(mapped):
    def driven(shared, vectors, features):
        parts = (x.reshape(N, -1, *x.shape[1:]) for x in (vectors, features))
        value, (d_shared, d_vectors) = mapped(shared, *parts)
        return value, (d_shared, d_vectors.reshape(vectors.shape))

    return driven


def on_pmap(body):
    return on_mapped_axis(
        jax.pmap(body, AXIS_NAME, in_axes=(None, 0, 0), out_axes=(0, (None, 0)), devices=jax.devices()[:N])
    )


def on_vmap(body):
    return on_mapped_axis(jax.jit(jax.vmap(body, in_axes=(None, 0, 0), out_axes=(0, (None, 0)), axis_name=AXIS_NAME)))


def step_of_device(loss, labels, options, num_classes=C):
    """The loss of the global batch and the gradients of a step, on one of the devices."""

    def body(shared, vectors, features):
        def loss_fn(shared, vectors):
            embeddings = gather(features @ shared["kernel"], AXIS_NAME)
            shard = ClassShard(vectors, axis_name=AXIS_NAME, num_classes=num_classes)
            return loss(embeddings, labels, shard, **shared["hyper"], **options)

        value, (d_shared, d_vectors) = jax.value_and_grad(loss_fn, argnums=(0, 1))(shared, vectors)
        return value, (average(d_shared, AXIS_NAME), d_vectors / N)

    return body


def checked_step_of_device(loss, labels, options, num_classes=C):
    """The same where `check_vma` is on: the average of the loss over devices has the gradients of the loss."""

    def body(shared, vectors, features):
        def loss_fn(shared, vectors):
            embeddings = jax.lax.all_gather(features @ shared["kernel"], AXIS_NAME, tiled=True)
            shard = ClassShard(vectors, axis_name=AXIS_NAME, num_classes=num_classes)
            return jax.lax.pmean(loss(embeddings, labels, shard, **shared["hyper"], **options), AXIS_NAME)

        return jax.value_and_grad(loss_fn, argnums=(0, 1))(shared, vectors)

    return body


def in_one_place(loss, shared, vectors, features, labels, options):
    def loss_fn(shared, vectors):
        return loss(features @ shared["kernel"], labels, vectors, **shared["hyper"], **options)

    return jax.jit(jax.value_and_grad(loss_fn, argnums=(0, 1)))(shared, vectors)


def assert_sharded_equals_whole(driver, name, step=step_of_device, **changes):
    loss, num_centers, hyper = LOSSES[name]
    shared, vectors, features, labels, options = example(num_centers)
    shared["hyper"], options = hyper, options | changes
    with jax.enable_x64(True):
        value, (d_shared, d_vectors) = in_one_place(loss, shared, vectors, features, labels, options)
        on_devices = driver(step(loss, labels, options))
        values, actual = on_devices(shared, in_rows_of_devices(vectors), features)
    np.testing.assert_allclose(values, np.full(values.shape, value), rtol=1e-10)
    expected = d_shared, np.concatenate([d_vectors, np.zeros((N * SIZE - C, *vectors.shape[1:]))])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-12), actual, expected)
    assert all(np.abs(gradient).max() > 1e-4 for gradient in jax.tree.leaves(expected))


every_loss_by_engine = pytest.mark.parametrize("name", slow_but_for_one_of_each_engine(LOSSES))


@every_loss_by_engine
def test_a_loss_and_its_gradients_are_those_of_all_classes_in_one_place(name):
    assert_sharded_equals_whole(on_shard_map, name)


@every_loss_by_engine
def test_a_loss_and_its_gradients_are_the_same_inside_shard_map_with_its_default_check(name):
    assert_sharded_equals_whole(on_checked_shard_map, name, checked_step_of_device)


@pytest.mark.parametrize("driver", [on_pmap, on_vmap])
def test_a_loss_and_its_gradients_are_the_same_under_pmap_and_vmap(driver):
    assert_sharded_equals_whole(driver, "sub-center ArcFace")


@pytest.mark.parametrize("name", ["soft triple", "proxy anchor"])
def test_a_loss_and_its_gradients_are_the_same_if_each_device_works_in_chunks(monkeypatch, name):
    monkeypatch.setattr(class_chunks, "WHOLE", 1)
    monkeypatch.setattr(class_chunks, "CHUNK", 1)
    class_loss._reduced.clear_cache()  # the sizes of chunks are no argument of it
    assert_sharded_equals_whole(on_vmap, name, class_weights=None)
    assert_sharded_equals_whole(on_checked_shard_map, name, checked_step_of_device, class_weights=None)
    class_loss._reduced.clear_cache()


def test_each_column_of_labels_has_its_own_shard():
    shared, first, features, labels, _ = example()
    second = example(num_classes=5)[1]  # a row for each of five devices
    columns = np.stack([np.abs(labels), np.abs(labels) % 5], axis=1)
    where = np.arange(2 * B).reshape(B, 2) % 5 > 0

    def on_device(first, second):
        shards = ClassShard(first, axis_name=AXIS_NAME, num_classes=C), ClassShard(second, AXIS_NAME, 5)
        return jaxmetric.cosface_loss(embeddings, columns, shards, where=where, has_aux=True)

    with jax.enable_x64(True):
        embeddings = features @ shared["kernel"]
        expected = jaxmetric.cosface_loss(embeddings, columns, (first, second), where=where, has_aux=True)
        shards = (in_rows_of_devices(first).reshape(N, SIZE, D), in_rows_of_devices(second, 1).reshape(N, 1, D))
        actual = jax.jit(jax.vmap(on_device, axis_name=AXIS_NAME))(*shards)
    for whole, of_devices in zip(jax.tree.leaves(expected), jax.tree.leaves(actual), strict=True):
        np.testing.assert_allclose(of_devices, np.stack([whole] * N), rtol=1e-10)


@pytest.mark.parametrize("name", ["soft triple", "SphereFace"])
def test_gradients_sum_over_devices_that_weight_the_loss_differently(name):
    """The sum of the devices' losses is differentiated, whatever each has made of the value."""
    loss, num_centers, hyper = LOSSES[name]
    shared, vectors, features, labels, options = example(num_centers)
    shared["hyper"] = hyper

    def weighed(*arguments, **options):
        return (1 + jax.lax.axis_index(AXIS_NAME)) * loss(*arguments, **options)

    with jax.enable_x64(True):
        _, (d_shared, d_vectors) = in_one_place(loss, shared, vectors, features, labels, options)
        _, actual = on_vmap(step_of_device(weighed, labels, options))(shared, in_rows_of_devices(vectors), features)
    mean_weight = np.mean(1 + np.arange(N))
    expected = jax.tree.map(lambda gradient: mean_weight * np.asarray(gradient), (d_shared, d_vectors))
    actual = actual[0], actual[1][:C]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-12), actual, expected)


@pytest.mark.parametrize("wrong", [-1, C, C + 1])
def test_a_label_out_of_range_is_an_error_or_nan(wrong):
    shared, vectors, features, labels, _ = example()
    labels[-1] = wrong

    def on_device(vectors, labels):
        shard = ClassShard(vectors, axis_name=AXIS_NAME, num_classes=C)
        return jaxmetric.center_loss(embeddings, labels, shard, reduction="none")

    embeddings = jnp.asarray(features @ shared["kernel"], jnp.float32)
    shards = in_rows_of_devices(vectors).astype(np.float32).reshape(N, SIZE, D)
    mapped = partial(jax.vmap, axis_name=AXIS_NAME)
    losses = jax.jit(mapped(on_device, in_axes=(0, None)))(shards, labels)
    assert np.isnan(losses[:, -1]).all()
    assert np.isfinite(losses[:, :-1]).all()
    with pytest.raises(ValueError, match=rf"labels span .*{wrong}.*expected classes in \[0, 13\) as centers"):
        mapped(lambda vectors: on_device(vectors, labels))(shards)


def test_the_regularizer_takes_a_shard():
    _, centers, *_ = example(K)
    shards = in_rows_of_devices(centers).astype(np.float32).reshape(N, SIZE, K, D)

    def on_device(centers):
        return jaxmetric.soft_triple_regularizer(ClassShard(centers, axis_name=AXIS_NAME, num_classes=C))

    expected = jaxmetric.soft_triple_regularizer(centers.astype(np.float32))
    np.testing.assert_allclose(jax.vmap(on_device, axis_name=AXIS_NAME)(shards), [expected] * N, rtol=1e-6)


def test_a_device_holds_one_chunk_besides_its_shard_and_gradient():
    num_classes = N * 40_000
    centers = jax.ShapeDtypeStruct((num_classes, 4, 64), np.float32)
    features, shared = jax.ShapeDtypeStruct((64, 64), np.float32), {"kernel": np.eye(64, dtype=np.float32), "hyper": {}}
    step = on_shard_map(step_of_device(jaxmetric.soft_triple_loss, np.arange(64), {}, num_classes))
    memory = step.lower(shared, centers, features).compile().memory_analysis()
    shard, scores = centers.size * 4 / N, class_chunks.CHUNK * 4
    assert memory.output_size_in_bytes < 1.01 * shard
    assert memory.temp_size_in_bytes < 8 * scores < shard / 2


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"num_classes": 17}, ValueError, r"proxies.vectors has 2 rows, expected 3: 17 classes over 8 devices"),
        ({"num_classes": 8}, ValueError, r"proxies.vectors has 2 rows, expected 1: 8 classes over 8 devices"),
        ({"num_classes": 13.0}, TypeError, r"proxies.num_classes is 13.0, expected a static integer"),
        ({"axis_name": "hosts"}, ValueError, r"proxies.axis_name is 'hosts', expected an axis of the pmap, shard_map"),
        ({"vectors": np.ones((2, 3))}, ValueError, r"proxies has shape \(2, 3\), expected last axis 4 as embeddings"),
        ({"vectors": np.ones((2, 2, 4))}, ValueError, r"proxies.vectors has shape \(2, 2, 4\), expected \[C, D\]"),
        ({"vectors": np.ones((2, 4), int)}, TypeError, "proxies.vectors has dtype int"),
        ({"class_weights": np.ones(2)}, ValueError, r"class_weights is of shape \(2,\), expected \(13,\), as proxies"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_a_bad_shard_is_one_clear_line(changes, error, message):
    shard = {"vectors": np.ones((SIZE, D), np.float32), "axis_name": AXIS_NAME, "num_classes": C} | changes
    class_weights = shard.pop("class_weights", None)

    def on_device(_):
        embeddings, labels = jnp.ones((B, D)), jnp.zeros(B, int)
        return jaxmetric.cosface_loss(embeddings, labels, ClassShard(**shard), class_weights=class_weights)

    with pytest.raises(error, match=f"^{message}") as raised:
        jax.vmap(on_device, axis_name=AXIS_NAME)(jnp.zeros(N))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "function",
    [
        lambda shard: jaxmetric.manifold_loss(jnp.ones((B, D)), jnp.zeros(B, int), shard),
        jaxmetric.regular_face_regularizer,
        jaxmetric.center_invariant_regularizer,
    ],
    ids=["manifold", "regular face", "center invariant"],
)
def test_functions_that_need_all_class_vectors_reject_a_shard(function):
    def on_device(vectors):
        return function(ClassShard(vectors, axis_name=AXIS_NAME, num_classes=C))

    with pytest.raises(TypeError, match=r"^proxies is a ClassShard, expected an array") as raised:
        jax.vmap(on_device, axis_name=AXIS_NAME)(jnp.ones((N, SIZE, D)))
    assert "\n" not in str(raised.value)


def drawn(labels, num_sampled, num_classes=C, keys=200, **options):
    """The rows and labels of many draws: `[keys, num_sampled]` and `[keys, B]`."""

    def draw(key, labels):
        return jaxmetric.sample_classes(key, labels, num_classes, num_sampled, **options)

    return jax.device_get(jax.jit(jax.vmap(draw, (0, None)))(jax.random.split(jax.random.key(0), keys), labels))


def drawn_on_devices(labels, num_sampled, num_classes, key=0):
    """`[N, num_sampled / N]` rows and the labels, which all devices agree on."""

    def on_device(key, _):
        return jaxmetric.sample_classes(key, labels, num_classes, num_sampled, axis_name=AXIS_NAME)

    mapped = jax.vmap(on_device, in_axes=(None, 0), axis_name=AXIS_NAME)
    sampled = jax.device_get(jax.jit(mapped)(jax.random.key(key), jnp.zeros(N)))
    np.testing.assert_array_equal(sampled.labels, [sampled.labels[0]] * N)
    return sampled.rows, sampled.labels[0]


def test_the_classes_of_the_batch_are_always_drawn_and_each_once():
    labels = np.array([7, 2, 7, 12, 0])
    rows, new = drawn(labels, 6)
    assert rows.shape == (200, 6)
    assert (np.diff(rows, axis=1) > 0).all()
    assert rows.min() >= 0
    assert rows.max() < C
    np.testing.assert_array_equal(np.take_along_axis(rows, new, axis=1), [labels] * 200)


def test_other_classes_are_drawn_uniformly():
    labels, keys = np.array([7, 2, 7, 12, 0]), 4000
    rows, _ = drawn(labels, 7, keys=keys)
    times = np.bincount(rows.ravel(), minlength=C)
    others = np.delete(times, [7, 2, 12, 0])
    share = (7 - 4) / (C - 4)
    np.testing.assert_allclose(others / keys, share, atol=4.5 * np.sqrt(share * (1 - share) / keys))
    assert not np.array_equal(rows[0], rows[1])


def test_classes_of_masked_examples_need_not_be_drawn_and_invalid_labels_stay_invalid():
    labels = np.array([7, 2, -1, 12, 13])
    rows, new = drawn(labels, 5, where=np.arange(5) != 1)
    assert (new[:, [2, 4]] == -1).all()
    np.testing.assert_array_equal(np.take_along_axis(rows, new[:, [0, 3]], axis=1), [[7, 12]] * len(rows))
    is_drawn = (rows == 2).any(axis=1)
    assert 0 < is_drawn.mean() < 1
    np.testing.assert_array_equal(new[:, 1] >= 0, is_drawn)


def test_a_loss_over_sampled_classes_is_that_of_a_softmax_over_them():
    """The ordinary softmax, by hand: its gradient in class c is the mean of (p_c - [c = y]) x."""
    rng = np.random.default_rng(0)
    embeddings, vectors, labels = rng.normal(size=(B, D)), rng.normal(size=(40, D)), rng.integers(0, 40, B)

    @jax.jit
    def value_and_gradient(vectors):
        sampled = jaxmetric.sample_classes(jax.random.key(3), labels, 40, 20)

        def loss(vectors):
            taken = vectors[sampled.rows]
            return jaxmetric.large_margin_softmax_loss(embeddings, sampled.labels, taken, margin=1)

        return jax.value_and_grad(loss)(vectors), sampled.rows

    with jax.enable_x64(True):
        (value, gradient), rows = jax.device_get(value_and_gradient(vectors))
    logits = embeddings @ vectors.T
    is_drawn = np.isin(np.arange(40), rows)
    shares = np.where(is_drawn, np.exp(logits), 0)
    shares /= shares.sum(axis=1, keepdims=True)
    right = labels[:, None] == np.arange(40)
    np.testing.assert_allclose(value, -np.log(shares[right]).mean(), rtol=1e-10)
    np.testing.assert_allclose(gradient, (shares - right).T @ embeddings / B, rtol=1e-8, atol=1e-12)


def test_each_device_draws_from_its_own_classes():
    num_classes, labels = 100, np.array([99, 3, 4, 5, 50, 3])  # 13 classes of each device, 9 of the last
    rows, new = drawn_on_devices(labels, 8 * N, num_classes)
    assert rows.shape == (N, 8)
    assert (np.diff(rows, axis=1) > 0).all()
    classes = rows + 13 * np.arange(N)[:, None]
    assert classes.max() < num_classes
    np.testing.assert_array_equal(classes.ravel()[new], labels)
    other_rows, _ = drawn_on_devices(labels, 8 * N, num_classes, key=1)
    assert (rows != other_rows).any(axis=1).all()
    assert len({tuple(row) for row in rows.tolist()}) == N


def test_sampled_shards_give_the_loss_of_unsharded_sampled_classes():
    name, num_classes, size, num_sampled = "soft triple", 317, 40, 20 * N
    loss, num_centers, hyper = LOSSES[name]
    shared, centers, features, _, _ = example(num_centers, num_classes)
    shared["hyper"], labels = hyper, np.arange(30, 30 + B) // 3 * 4
    rows, new = drawn_on_devices(labels, num_sampled, num_classes)

    def sampled_loss(embeddings, labels, shard, **options):
        key = jax.random.key(0)
        sampled = jaxmetric.sample_classes(key, labels, num_classes, num_sampled, axis_name=AXIS_NAME)
        taken = ClassShard(shard.vectors[sampled.rows], axis_name=AXIS_NAME, num_classes=num_sampled)
        return loss(embeddings, sampled.labels, taken, **options)

    with jax.enable_x64(True):
        classes = (rows + size * np.arange(N)[:, None]).ravel()
        value, (d_shared, d_taken) = in_one_place(loss, shared, centers[classes], features, new, {})
        step = on_shard_map(step_of_device(sampled_loss, labels, {}, num_classes))
        values, actual = step(shared, in_rows_of_devices(centers, size), features)
    np.testing.assert_allclose(values, np.full(N, value), rtol=1e-10)
    d_centers = np.zeros((N * size, *centers.shape[1:]))
    d_centers[classes] = d_taken
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-12), actual, (d_shared, d_centers))


def test_sampling_all_classes_gives_the_full_loss():
    labels = np.arange(B) % C
    rows, new = drawn(labels, C, keys=1)
    np.testing.assert_array_equal(rows[0], np.arange(C))
    np.testing.assert_array_equal(new[0], labels)
    rows, new = drawn_on_devices(labels, C, C)  # rows of padding included, where they were
    np.testing.assert_array_equal(rows, [np.arange(SIZE)] * N)
    np.testing.assert_array_equal(new, labels)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"num_sampled": 4},
            ValueError,
            r"num_sampled is 4, expected a number from 5 to 100, or all 100: what a batch of 5 has is kept$",
        ),
        ({"num_sampled": 101}, ValueError, r"num_sampled is 101, expected a number from 5 to 100"),
        ({"num_sampled": 10.0}, TypeError, r"num_sampled is 10.0, expected a static integer"),
        ({"num_classes": 0}, ValueError, r"num_classes is 0, expected a static integer of at least 1"),
        ({"labels": np.full(5, 100)}, ValueError, r"labels span \[100, 100\], expected classes in \[0, 100\)"),
        ({"labels": np.ones(5)}, TypeError, r"labels has dtype float64, expected integers"),
        ({"labels": np.ones((5, 2), int)}, ValueError, r"labels has shape \(5, 2\), expected one column"),
        ({"where": np.ones(4, bool)}, ValueError, r"where has shape \(4,\), expected \(5,\)"),
        ({"axis_name": "hosts"}, ValueError, r"axis_name is 'hosts', expected an axis of the pmap, shard_map or vmap"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_bad_arguments_of_sampling_are_one_clear_line(changes, error, message):
    arguments = {"labels": np.arange(5), "num_classes": 100, "num_sampled": 20, "where": None} | changes
    with pytest.raises(error, match=f"^{message}") as raised:
        jaxmetric.sample_classes(jax.random.key(0), **arguments)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("num_sampled", "expected"),
    [
        (20, "a multiple of 8 from 40 to 72, or all 100"),  # not a multiple
        (32, "a multiple of 8 from 40 to 72, or all 100"),  # fewer than the batch may have of one device's classes
        (80, "a multiple of 8 from 40 to 72, or all 100"),  # more than the last device holds
    ],
)
def test_devices_draw_equal_numbers_and_include_every_class_of_the_batch(num_sampled, expected):
    with pytest.raises(
        ValueError, match=f"^num_sampled is {num_sampled}, expected {expected}: .* 8 devices, .* 13 classes"
    ):
        drawn_on_devices(np.arange(5), num_sampled, 100)


@pytest.mark.parametrize(("num_classes", "expected"), [(100, "72, or all 100"), (72, "all 72")])
def test_the_error_names_the_only_possible_number_of_samples(num_classes, expected):
    with pytest.raises(ValueError, match=f"^num_sampled is 64, expected {expected}: what a batch of 9 has"):
        drawn_on_devices(np.arange(9), 64, num_classes)
