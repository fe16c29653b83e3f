from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

import jaxmetric
from jaxmetric.losses._engine import class_chunks, class_loss
from jaxmetric.losses._engine.class_softmax import (
    combine_parts,
    log_sum_exp,
    normalized_dot_product,
    right_and_others,
    softmax_part,
    sum_over_classes,
)

B, D, K = 6, 4, 2


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def example(num_classes=11, num_centers=None, dtype=np.float32):
    rng = np.random.default_rng(num_classes)
    shape = (num_classes, D) if num_centers is None else (num_classes, num_centers, D)
    labels = rng.integers(0, num_classes, B)
    return rng.normal(size=(B, D)).astype(dtype), labels, rng.normal(size=shape).astype(dtype)


def take_chunks_of(monkeypatch, scores):
    monkeypatch.setattr(class_chunks, "WHOLE", 1)
    monkeypatch.setattr(class_chunks, "CHUNK", scores)


def logits_in_numpy(embeddings, vectors):
    return embeddings @ unit(vectors).T


def others_in_numpy(embeddings, labels, vectors):
    logits = logits_in_numpy(embeddings, vectors)
    others = np.arange(len(vectors))[None, :] != labels[:, None]
    return np.log(np.where(others, np.exp(logits), 0).sum(axis=1))


@pytest.mark.parametrize("chunk", [None, 1, 3, 4, 10, 11])
def test_the_right_logit_and_the_log_sum_exp_of_the_others(monkeypatch, chunk):
    embeddings, labels, vectors = example(dtype=np.float64)
    if chunk:
        take_chunks_of(monkeypatch, chunk * B)
    with jax.enable_x64(True):
        right, others = jax.jit(partial(right_and_others, normalized_dot_product))(vectors, labels, embeddings)
    np.testing.assert_allclose(right, logits_in_numpy(embeddings, vectors)[np.arange(B), labels], rtol=1e-12)
    np.testing.assert_allclose(others, others_in_numpy(embeddings, labels, vectors), rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_chunks_neither_overflow_nor_vanish(monkeypatch, scale):
    take_chunks_of(monkeypatch, 2 * B)
    embeddings, labels, vectors = example()
    _, others = right_and_others(normalized_dot_product, vectors, labels, scale * embeddings)
    logits = scale * logits_in_numpy(np.float64(embeddings), np.float64(vectors))
    logits[np.arange(B), labels] = -np.inf
    largest = logits.max(axis=1)
    expected = largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1))
    np.testing.assert_allclose(others, expected, rtol=1e-5, atol=1e-6)


def test_a_single_class_has_no_others():
    def loss(embeddings):
        _, others = right_and_others(normalized_dot_product, jnp.ones((1, D)), jnp.zeros(B, int), embeddings)
        return jnp.sum(jax.nn.softplus(others))

    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.ones((B, D)))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


LOSSES = {
    "soft triple": (jaxmetric.soft_triple_loss, K, {"tau": 0.5}),
    "sub-center ArcFace": (jaxmetric.sub_center_arcface_loss, K, {"scale": 8.0}),
    "large-margin softmax": (jaxmetric.large_margin_softmax_loss, None, {}),
    "proxy anchor": (jaxmetric.proxy_anchor_loss, None, {}),
    "P2SGrad": (jaxmetric.p2sgrad_loss, None, {}),
}


@pytest.mark.parametrize("name", LOSSES)
def test_chunks_change_neither_values_nor_gradients(monkeypatch, name):
    loss, num_centers, hyper = LOSSES[name]
    embeddings, labels, vectors = example(num_centers=num_centers, dtype=np.float64)
    labels[2] = -5
    options = {"where": np.arange(B) != 2, "class_weights": np.linspace(0, 2, 11), **hyper}

    def value_and_gradients():
        class_loss._reduced.clear_cache()  # the sizes of chunks are no argument of it
        with jax.enable_x64(True):
            of_both = jax.value_and_grad(lambda x, w: loss(x, labels, w, **options), argnums=(0, 1))
            return jax.jit(of_both)(embeddings, vectors)

    whole = value_and_gradients()
    take_chunks_of(monkeypatch, 4 * B * (num_centers or 1))
    chunked = value_and_gradients()
    class_loss._reduced.clear_cache()
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12), chunked, whole)


def test_hyper_parameters_have_gradients_in_chunks_too(monkeypatch):
    embeddings, labels, centers = example(num_centers=K, dtype=np.float64)

    def loss(scale, gamma):
        return jaxmetric.soft_triple_loss(embeddings, labels, centers, scale=scale, gamma=gamma, tau=0.0)

    def summed_gradients():
        class_loss._reduced.clear_cache()
        with jax.enable_x64(True):
            return jax.jit(jax.grad(lambda *hyper: loss(*hyper), argnums=(0, 1)))(5.0, 0.3)

    with jax.enable_x64(True):
        compiled = jax.jit(loss)
        slopes = [
            (compiled(5.0 + s, 0.3 + g) - compiled(5.0 - s, 0.3 - g)) / 2e-6 for s, g in ((1e-6, 0.0), (0.0, 1e-6))
        ]
    np.testing.assert_allclose(summed_gradients(), slopes, rtol=1e-6)
    take_chunks_of(monkeypatch, 4 * B * K)
    np.testing.assert_allclose(summed_gradients(), slopes, rtol=1e-6)
    class_loss._reduced.clear_cache()


def test_a_nan_stays_visible_in_chunks(monkeypatch):
    take_chunks_of(monkeypatch, 4 * B)
    embeddings, labels, vectors = example()
    embeddings[1, 0] = np.nan
    _, others = right_and_others(normalized_dot_product, vectors, labels, embeddings)
    assert np.flatnonzero(np.isnan(others)).tolist() == [1]
    embeddings, labels, vectors = example()
    vectors[9] = np.nan
    _, others = right_and_others(normalized_dot_product, vectors, labels, embeddings)
    assert np.isnan(others)[labels != 9].all()


def test_parts_of_shards_combine_to_the_whole():
    embeddings, labels, vectors = example(num_classes=8)
    mesh = Mesh(jax.devices()[:4], ("classes",), axis_types=(AxisType.Auto,))

    def on_device(vectors):
        index = 2 * jax.lax.axis_index("classes") + jnp.arange(2)
        part = softmax_part(normalized_dot_product(vectors, embeddings), index, index >= 0, labels)
        largest = jax.lax.pmax(part.largest, "classes")
        rest = part.sum_exp * jnp.exp(part.largest - largest), part.right
        sum_exp, right = jax.lax.psum(rest, "classes")
        return right, log_sum_exp(part._replace(largest=largest, sum_exp=sum_exp))

    sharded = jax.shard_map(on_device, mesh=mesh, in_specs=PartitionSpec("classes"), out_specs=PartitionSpec())
    right, others = jax.jit(sharded)(vectors)
    np.testing.assert_allclose(right, logits_in_numpy(embeddings, vectors)[np.arange(B), labels], rtol=1e-5)
    np.testing.assert_allclose(others, others_in_numpy(embeddings, labels, vectors), rtol=1e-5)


def test_combining_parts_is_commutative_and_accepts_empty_parts():
    embeddings, labels, vectors = example(num_classes=8)

    def part(counted):
        index = jnp.arange(8)
        return softmax_part(normalized_dot_product(vectors, embeddings), index, counted, labels)

    @jax.jit
    def joined():
        some = jnp.isin(jnp.arange(8), jnp.array([0, 5, 2]))
        first, second, nothing = part(some), part(~some), part(jnp.zeros(8, bool))
        again = combine_parts(combine_parts(nothing, first), combine_parts(second, nothing))
        return [log_sum_exp(each) for each in (combine_parts(first, second), combine_parts(second, first), again)]

    for each in joined():
        np.testing.assert_allclose(each, others_in_numpy(embeddings, labels, vectors), rtol=1e-5)


def test_sums_over_classes(monkeypatch):
    _, _, vectors = example(dtype=np.float64)

    def terms(vectors, index, operands, fixed):
        return operands * jnp.sum(vectors**2, axis=1) * (index + fixed), vectors

    def loss(vectors, operand):
        (weighed, plain), passed_on = sum_over_classes(terms, vectors, operand, 1, rows=1)
        return weighed + jnp.sum(plain**2) + jnp.sum(jnp.sin(passed_on))

    def expected(vectors, operand):
        count = jnp.arange(1, len(vectors) + 1)
        return jnp.sum(operand * count[:, None] * vectors**2) + jnp.sum(vectors.sum(0) ** 2) + jnp.sum(jnp.sin(vectors))

    take_chunks_of(monkeypatch, 4)
    with jax.enable_x64(True):
        computed, by_hand = (jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(vectors, 3.0) for f in (loss, expected))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12), computed, by_hand)


@pytest.mark.parametrize("tau", [0.0, 0.2])
def test_many_centers_take_little_more_memory_than_their_gradient(tau):
    centers = jax.ShapeDtypeStruct((100_000, 10, 64), np.float32)
    embeddings, labels = jax.ShapeDtypeStruct((128, 64), np.float32), jax.ShapeDtypeStruct((128,), np.int32)
    loss = jax.jit(jax.value_and_grad(partial(jaxmetric.soft_triple_loss, tau=tau), argnums=(0, 2)))
    memory = loss.lower(embeddings, labels, centers).compile().memory_analysis()
    assert memory.output_size_in_bytes + memory.temp_size_in_bytes < 1.1 * centers.size * 4


# Every loss of the family goes through the same edge: one of them stands for all.


def columns():
    embeddings, _, first = example(num_classes=5)
    second = example(num_classes=3)[2]
    labels = np.stack([np.arange(B) % 5, np.arange(B) % 3], axis=1)
    return embeddings, labels, (first, second)


def test_columns_of_labels_add_up():
    embeddings, labels, proxies = columns()
    where = np.ones((B, 2), bool)
    where[0, 1] = where[3, 0] = False
    labels[0, 1] = -1
    class_weights = np.linspace(0, 2, 5), np.linspace(1, 2, 3)
    weights = np.linspace(0.5, 2, B)
    both, stats = jaxmetric.normalized_softmax_loss(
        embeddings, labels, proxies, class_weights=class_weights, where=where, weights=weights, has_aux=True
    )
    single = [
        jaxmetric.normalized_softmax_loss(
            embeddings,
            labels[:, t],
            proxies[t],
            class_weights=class_weights[t],
            where=where[:, t],
            weights=weights,
            has_aux=True,
        )
        for t in range(2)
    ]
    np.testing.assert_allclose(both, single[0][0] + single[1][0], rtol=1e-6)
    for t in range(2):
        np.testing.assert_allclose([each[t] for each in stats], single[t][1], rtol=1e-6)
    each = jaxmetric.normalized_softmax_loss(embeddings, labels, proxies, where=where, reduction="none")
    assert each.shape == (B,)
    assert np.isfinite(each).all()


def test_where_per_example_applies_to_all_columns():
    embeddings, labels, proxies = columns()
    where = np.arange(B) != 2
    np.testing.assert_allclose(
        jaxmetric.cosface_loss(embeddings, labels, proxies, where=where),
        jaxmetric.cosface_loss(embeddings, labels, proxies, where=np.stack([where] * 2, axis=1)),
        rtol=1e-6,
    )


def test_class_weights_multiply_those_of_examples():
    embeddings, labels, proxies = example()
    class_weights = np.random.default_rng(1).choice([0.0, 0.5, 2.0], len(proxies))
    weights = np.linspace(0.5, 2, B)
    embeddings[class_weights[labels] == 0] = np.nan  # weight 0 is a mask
    np.testing.assert_allclose(
        jaxmetric.arcface_loss(embeddings, labels, proxies, class_weights=class_weights, weights=weights),
        jaxmetric.arcface_loss(embeddings, labels, proxies, weights=weights * class_weights[labels]),
        rtol=1e-6,
    )


@pytest.mark.parametrize("loss", [jaxmetric.cosface_loss, jaxmetric.proxy_anchor_loss, jaxmetric.center_loss])
@pytest.mark.parametrize("wrong", [-1, 11])
def test_a_label_out_of_range_is_an_error_or_nan(loss, wrong):
    embeddings, labels, proxies = example()
    labels[2] = wrong
    with pytest.raises(ValueError, match=rf"labels span .*{wrong}.*expected classes in \[0, 11\) as "):
        loss(embeddings, labels, proxies)
    compiled = jax.jit(loss)
    assert np.isnan(compiled(embeddings, labels, proxies))
    assert np.isfinite(compiled(embeddings, labels, proxies, where=np.arange(B) != 2))
    assert np.isfinite(loss(embeddings, labels, proxies, weights=np.arange(B) != 2))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"proxies": ()},
            ValueError,
            r"labels has shape \(6, 2\), expected \(6, 0\): a column for each of the proxies",
        ),
        ({"labels": np.zeros(6, int)}, ValueError, r"labels has shape \(6,\), expected \(6, 2\): a column for each"),
        ({"labels": np.full((6, 2), 3)}, ValueError, r"labels span \[3, 3\], .* \[0, 3\) as proxies\[1\]"),
        ({"labels": np.zeros((6, 2))}, TypeError, "labels has dtype float"),
        ({"where": np.ones((6, 3), bool)}, ValueError, r"where has shape \(6, 3\), expected \(6, 2\) as labels"),
        ({"class_weights": np.ones(5)}, ValueError, r"class_weights is of shape \(5,\), expected a tuple of 2"),
        ({"class_weights": (np.ones(5),)}, ValueError, "class_weights is a tuple of 1, expected a tuple of 2"),
        ({"class_weights": (None, np.ones(5))}, ValueError, r"is of shape \(5,\), expected \(3,\), as proxies\[1\]"),
        ({"proxies": (np.ones((5, 4)), np.ones((3, 2)))}, ValueError, r"proxies\[1\] has shape \(3, 2\), .* axis 4"),
        ({"proxies": (np.ones((5, 4)), np.ones((3, 4), int))}, TypeError, r"proxies\[1\] has dtype int"),
        (
            {"proxies": (np.ones((5, 4)), np.ones((3, 2, 4)))},
            ValueError,
            r"proxies\[1\] has shape .* expected \[C, D\]",
        ),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_bad_columns_are_one_clear_line(changes, error, message):
    embeddings, labels, proxies = columns()
    arguments = {"embeddings": embeddings, "labels": labels, "proxies": proxies, **changes}
    with pytest.raises(error, match=message) as raised:
        jaxmetric.cosface_loss(**arguments)
    assert "\n" not in str(raised.value)
