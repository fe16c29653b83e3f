from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmetric
from jaxmetric import init_centers, normalized_softmax_loss

# One program compiles faster than its operations one by one.
soft_triple_loss = jax.jit(jaxmetric.soft_triple_loss, static_argnames=("tau", "reduction", "has_aux"))
soft_triple_regularizer = jax.jit(jaxmetric.soft_triple_regularizer)
effective_centers = jax.jit(jaxmetric.effective_centers)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def example(seed=0, batch=7, classes=5, centers=3, dim=4):
    rng = np.random.default_rng(seed)
    embeddings = unit(rng.normal(size=(batch, dim)))
    return embeddings, rng.integers(0, classes, batch), rng.normal(size=(classes, centers, dim))


def papers_losses(embeddings, labels, centers, scale=20.0, gamma=0.1, margin=0.01):
    """Equations 6 and 7 of the paper, one example and one class at a time: [B]."""
    centers = unit(centers)
    losses = []
    for x, y in zip(embeddings, labels, strict=True):
        similarity = []
        for of_class in centers:
            s = of_class @ x
            q = np.exp(s / gamma) / np.exp(s / gamma).sum()
            similarity.append((q * s).sum())
        logits = scale * (np.array(similarity) - margin * (np.arange(len(centers)) == y))
        losses.append(-np.log(np.exp(logits[y]) / np.exp(logits).sum()))
    return np.array(losses)


def papers_regularizer(centers):
    """The second term of equation 8, with the 1e-5 of the authors' code, one pair of centers at a time."""
    num_classes, num_centers, _ = centers.shape
    total = 0.0
    for of_class in unit(centers):
        for t in range(num_centers):
            for s in range(t + 1, num_centers):
                total += np.sqrt(2 + 1e-5 - 2 * of_class[s] @ of_class[t])
    return total / (num_classes * num_centers * (num_centers - 1))


@pytest.mark.parametrize(
    "options",
    [{}, {"scale": 5.0, "gamma": 0.5, "margin": 0.3}, {"gamma": 0.02}, {"margin": 0.0, "scale": 60.0}],
    ids=str,
)
@pytest.mark.parametrize("sizes", [{}, {"batch": 1, "classes": 2, "centers": 1}, {"batch": 12, "centers": 6}], ids=str)
def test_is_the_papers_formula(sizes, options):
    embeddings, labels, centers = example(**sizes)
    expected = papers_losses(embeddings, labels, centers, **options)
    with jax.enable_x64(True):
        actual = soft_triple_loss(embeddings, labels, centers, tau=0.0, reduction="none", **options)
        assert actual.dtype == np.float64
        np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-13)


def test_in_single_precision_it_is_as_accurate_as_the_logits():
    embeddings, labels, centers = example(batch=30)
    expected = papers_losses(embeddings, labels, centers)
    actual = soft_triple_loss(*as_f32(embeddings, labels, centers), tau=0.0, reduction="none")
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=2e-6)


def as_f32(embeddings, labels, *parameters):
    return np.float32(embeddings), labels, *(np.float32(each) for each in parameters)


def test_small_losses_stay_accurate():
    # Similarities 1 and 0.6: log(1 + exp(scale (0.6 - 1))), where float32 resolves 2e-6 around logits of 30.
    embeddings, centers = np.float32([[1, 0]]), np.float32([[[1, 0]], [[0.6, 0.8]]])
    loss = soft_triple_loss(embeddings, np.array([0]), centers, scale=30.0, margin=0.0)
    np.testing.assert_allclose(loss, np.log1p(np.exp(-12.0)), rtol=0.02)


def test_one_center_is_the_normalized_softmax():
    embeddings, labels, centers = as_f32(*example(centers=1))
    np.testing.assert_allclose(
        soft_triple_loss(embeddings, labels, centers, scale=7.0, margin=0.2),
        normalized_softmax_loss(embeddings, labels, centers[:, 0], scale=7.0, margin=0.2),
        rtol=1e-6,
    )


def test_gamma_towards_0_counts_the_nearest_center_only():
    embeddings, labels, centers = example(batch=9)
    nearest = (unit(centers) @ embeddings.T).max(axis=1).T
    logits = 20.0 * (nearest - 0.01 * np.eye(5)[labels])
    expected = -np.log(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))[np.arange(9), labels]
    for gamma in (1e-3, 1e-6, 1e-30):
        value_and_grad = jax.value_and_grad(soft_triple_loss, argnums=2)
        loss, gradient = value_and_grad(*as_f32(embeddings, labels, centers), gamma=gamma, tau=0.0)
        np.testing.assert_allclose(loss, expected.mean(), rtol=2e-4)
        assert np.isfinite(gradient).all()


def test_gradients_stay_accurate_when_gamma_is_small():
    embeddings, labels, centers = example(batch=20)
    gradient = jax.grad(soft_triple_loss)
    single = gradient(*as_f32(embeddings, labels, centers), gamma=1e-3, tau=0.0)
    with jax.enable_x64(True):
        double = np.asarray(gradient(embeddings, labels, centers, gamma=1e-3, tau=0.0))
    np.testing.assert_allclose(single, double, atol=1e-5 * np.abs(double).max())


def test_a_large_gamma_averages_the_centers():
    embeddings, labels, centers = as_f32(*example())
    mean = unit(centers).mean(axis=1)
    logits = 20.0 * (embeddings @ mean.T - 0.01 * np.eye(5)[labels])
    expected = (np.log(np.exp(logits).sum(1)) - logits[np.arange(7), labels]).mean()
    np.testing.assert_allclose(soft_triple_loss(embeddings, labels, centers, gamma=1e6, tau=0.0), expected, rtol=1e-4)


def test_only_the_directions_of_centers_matter():
    embeddings, labels, centers = as_f32(*example())
    lengths = np.random.default_rng(1).uniform(0.1, 10, (5, 3, 1)).astype(np.float32)
    np.testing.assert_allclose(
        soft_triple_loss(embeddings, labels, centers * lengths),
        soft_triple_loss(embeddings, labels, centers),
        rtol=1e-5,
    )


def test_the_regularizer_is_added_once_per_example():
    embeddings, labels, centers = as_f32(*example())
    without, with_it = (soft_triple_loss(embeddings, labels, centers, tau=tau) for tau in (0.0, 0.3))
    regularizer = papers_regularizer(centers)
    np.testing.assert_allclose(with_it - without, 0.3 * regularizer, rtol=1e-5)
    total = soft_triple_loss(embeddings, labels, centers, tau=0.3, reduction="sum")
    np.testing.assert_allclose(total, 7 * with_it, rtol=1e-6)


def test_tau_0_leaves_the_regularizer_out_of_the_program():
    embeddings, labels, centers = as_f32(*example())

    def operations(tau):
        return str(jax.make_jaxpr(lambda c: jaxmetric.soft_triple_loss(embeddings, labels, c, tau=tau))(centers))

    assert "sqrt" in operations(0.2).replace("rsqrt", "")
    assert "sqrt" not in operations(0.0).replace("rsqrt", "")


def test_hyper_parameters_may_be_traced():
    embeddings, labels, centers = as_f32(*example())
    options = {"scale": 9.0, "gamma": 0.3, "margin": 0.1, "tau": 0.4}
    traced = jax.jit(jaxmetric.soft_triple_loss)(embeddings, labels, centers, **options)
    given = jax.jit(partial(jaxmetric.soft_triple_loss, **options))(embeddings, labels, centers)
    np.testing.assert_allclose(traced, given, rtol=1e-6)


@pytest.mark.parametrize("sizes", [{}, {"centers": 2}, {"classes": 1, "centers": 8}], ids=str)
def test_regularizer_is_the_papers_formula(sizes):
    centers = example(**sizes)[2]
    with jax.enable_x64(True):
        np.testing.assert_allclose(soft_triple_regularizer(centers), papers_regularizer(centers), rtol=1e-12)


def test_regularizer_of_one_center_is_0():
    value, gradient = jax.value_and_grad(soft_triple_regularizer)(jnp.ones((4, 1, 3)))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_regularizer_of_coinciding_centers_is_its_floor_with_a_finite_gradient():
    # In most directions of float32 the dot product of a unit vector with itself is not exactly 1.
    direction = np.random.default_rng(0).normal(size=(200, 1, 16)).astype(np.float32)
    centers = np.repeat(direction, 3, axis=1)
    value, gradient = jax.value_and_grad(soft_triple_regularizer)(centers)
    np.testing.assert_allclose(value, np.sqrt(1e-5) / 2, rtol=0.02)
    assert np.isfinite(gradient).all()


def test_regularizer_merges_centers():
    centers = example(classes=4, centers=3, dim=6)[2].astype(np.float32)
    descend = jax.jit(lambda c: c - 3.0 * jax.grad(soft_triple_regularizer)(c))
    start = soft_triple_regularizer(centers)
    for _ in range(100):
        centers = descend(centers)
    assert soft_triple_regularizer(centers) < 0.1 * start
    assert effective_centers(centers, tolerance=0.3).tolist() == [1, 1, 1, 1]


def test_regularizer_needs_memory_linear_in_the_number_of_classes():
    def temporary_bytes(num_classes):
        shape = jax.ShapeDtypeStruct((num_classes, 10, 16), np.float32)
        compiled = jax.jit(jax.value_and_grad(soft_triple_regularizer)).lower(shape).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, large = temporary_bytes(500), temporary_bytes(2000)
    assert large < 5 * small
    assert large < 10 * 4 * 2000 * (10 * 10 + 10 * 16)  # ten arrays of [C, K, K] and [C, K, D]; (C K)^2 takes 1.6 GB


@pytest.mark.parametrize("reduction", ["mean", "mean_active", "sum", "none"])
def test_weights_multiply_losses(reduction):
    embeddings, labels, centers = as_f32(*example())
    weights = np.float32([0, 1, 2, 0.5, 0, 3, 1])
    each = papers_losses(embeddings, labels, centers) + 0.2 * papers_regularizer(centers)
    expected = {
        "mean": (weights * each).sum() / weights.sum(),
        "mean_active": (weights * each).sum() / weights.sum(),  # every loss here is positive
        "sum": (weights * each).sum(),
        "none": weights * each,
    }[reduction]
    actual = soft_triple_loss(embeddings, labels, centers, weights=weights, reduction=reduction)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_stats_are_the_sums_behind_the_mean():
    embeddings, labels, centers = as_f32(*example())
    where = np.arange(7) < 5
    loss, stats = soft_triple_loss(embeddings, labels, centers, where=where, has_aux=True)
    assert (stats.valid, stats.active) == (5, 5)
    np.testing.assert_allclose(stats.total / 5, loss, rtol=1e-6)


@pytest.mark.parametrize("wrong", [-1, 5])
def test_a_concrete_label_out_of_range_is_an_error(wrong):
    embeddings, labels, centers = as_f32(*example())
    labels[2] = wrong
    with pytest.raises(ValueError, match=rf"labels span .*{wrong}.*classes in \[0, 5\) as centers"):
        jaxmetric.soft_triple_loss(embeddings, labels, centers)
    with pytest.raises(ValueError, match=r"as proxies"):
        normalized_softmax_loss(embeddings, labels, centers[:, 0])


def test_a_concrete_label_out_of_range_may_be_masked():
    embeddings, labels, centers = as_f32(*example())
    labels[2] = -1
    loss = normalized_softmax_loss(embeddings, labels, centers[:, 0], where=np.arange(7) != 2)
    assert np.isfinite(loss)


@pytest.mark.parametrize("wrong", [-1, 5])
def test_a_traced_label_out_of_range_is_nan_unless_masked(wrong):
    embeddings, labels, centers = as_f32(*example())
    labels[2] = wrong
    losses = soft_triple_loss(embeddings, labels, centers, reduction="none")
    assert np.flatnonzero(np.isnan(losses)).tolist() == [2]
    where = np.arange(7) != 2
    expected = papers_losses(embeddings[where], labels[where], centers).mean() + 0.2 * papers_regularizer(centers)
    np.testing.assert_allclose(soft_triple_loss(embeddings, labels, centers, where=where), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["uint8", "int8 column"])
def test_labels_of_any_integer_type(kind):
    embeddings, labels, _ = as_f32(*example())
    centers = np.random.default_rng(3).normal(size=(300, 2, 4)).astype(np.float32)  # more classes than int8 has values
    expected = papers_losses(embeddings, labels, centers).mean()
    labels = labels.astype(np.uint8) if kind == "uint8" else labels.astype(np.int8)[:, None]
    np.testing.assert_allclose(soft_triple_loss(embeddings, labels, centers, tau=0.0), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"embeddings": np.ones((7, 3), np.float32)}, ValueError, r"centers has shape \(5, 3, 4\), .* last axis 3"),
        ({"embeddings": np.ones((7, 4), int)}, TypeError, "embeddings has dtype int.*floating"),
        ({"embeddings": np.ones(7, np.float32)}, ValueError, r"embeddings has shape \(7,\), expected \[B, D\]"),
        ({"labels": np.zeros(6, int)}, ValueError, r"labels has shape \(6,\)"),
        ({"labels": np.zeros((7, 2), int)}, ValueError, r"labels has shape \(7, 2\), expected one column"),
        ({"labels": np.zeros(7)}, TypeError, "labels has dtype float"),
        ({"centers": np.ones((5, 4), np.float32)}, ValueError, r"centers has shape \(5, 4\), expected \[C, K, D\]"),
        ({"centers": np.ones((5, 0, 4), np.float32)}, ValueError, "without an empty axis"),
        ({"centers": np.ones((5, 3, 4), int)}, TypeError, "centers has dtype int"),
        ({"where": np.ones(6, bool)}, ValueError, r"where has shape \(6,\)"),
        ({"where": np.ones(7)}, TypeError, "where has dtype float"),
        ({"weights": np.ones((7, 2))}, ValueError, r"weights has shape \(7, 2\)"),
        ({"scale": 0.0}, ValueError, "scale is 0, expected a finite number above 0"),
        ({"gamma": -0.1}, ValueError, "gamma is -0.1, expected a finite number above 0"),
        ({"margin": np.nan}, ValueError, "margin is nan"),
        ({"tau": -1.0}, ValueError, "tau is -1, expected a finite number of at least 0"),
        ({"gamma": "0.1"}, TypeError, "gamma is '0.1', expected a number"),
        ({"reduction": "median"}, ValueError, "reduction is 'median', expected one of mean, mean_active, sum, none"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("compiled", [False, True])
def test_bad_input_is_one_clear_line(changes, error, message, compiled):
    embeddings, labels, centers = as_f32(*example())
    arguments = {"embeddings": embeddings, "labels": labels, "centers": centers, **changes}
    loss = jaxmetric.soft_triple_loss
    if compiled:
        loss = jax.jit(loss, static_argnames=("scale", "gamma", "margin", "tau", "reduction"))
    with pytest.raises(error, match=message) as raised:
        loss(**arguments)
    assert "\n" not in str(raised.value)


def test_initial_centers_are_uniform_in_the_kaiming_range():
    # Kaiming-uniform with a = sqrt(5) on [D, C K]: +- sqrt(6 / ((1 + 5) C K)).
    bound = 1 / np.sqrt(50 * 4)
    centers = np.asarray(init_centers(jax.random.key(0), num_classes=50, centers_per_class=4, dim=64))
    assert centers.shape == (50, 4, 64)
    assert centers.dtype == np.float32
    assert np.abs(centers).max() <= bound
    quantiles = np.quantile(centers / bound, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(quantiles, [-1, -0.5, 0, 0.5, 1], atol=0.03)


def test_initial_centers_depend_on_the_key_only():
    first, again, other = (init_centers(jax.random.key(seed), 3, 2, 4) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.any(first == other)


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, 0, 1), (1, 1, -2)])
def test_initial_centers_need_sizes_of_at_least_1(sizes):
    with pytest.raises(
        ValueError, match=r"(num_classes|centers_per_class|dim) is (0|-2), expected a static integer of at least 1"
    ):
        init_centers(jax.random.key(0), *sizes)


def arc(*degrees):
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=-1).astype(np.float32)


def test_effective_centers_count_chains():
    # 0.1 is a chord of 5.73 degrees.
    centers = np.stack(
        [
            arc(0, 5, 10, 15, 20),  # one chain, though its ends are far apart
            arc(20, 10, 0, 15, 5),  # the same in another order
            arc(0, 6, 12, 18, 24),  # links too long
            arc(0, 5, 90, 180, 185),
            arc(40, 40, 40, 40, 40),
        ]
    )
    lengths = np.float32([1, 2, 3, 4, 5])[:, None]
    assert effective_centers(centers * lengths).tolist() == [1, 1, 5, 3, 1]


@pytest.mark.parametrize("num_centers", [1, 2, 3, 4, 5, 9, 17])
def test_effective_centers_follow_the_longest_chain(num_centers):
    chain = arc(*5.0 * np.random.default_rng(num_centers).permutation(num_centers))
    assert effective_centers(chain[None]).tolist() == [1]


@pytest.mark.parametrize(("tolerance", "count"), [(0.0, 3), (1e-4, 3), (1.2e-3, 2), (0.3, 1), (2.0, 1)])
def test_effective_centers_respect_a_fine_tolerance(tolerance, count):
    # Chords of 0.00105 (0.06 degrees) and 0.26: at a cosine of 1 - 5e-7, which float32 hardly tells from 1.
    assert effective_centers(arc(0, 0.06, 15)[None], tolerance=tolerance).tolist() == [count]


def test_effective_centers_reject_a_negative_tolerance_and_a_flat_array():
    with pytest.raises(ValueError, match="tolerance is -1, expected a finite number of at least 0"):
        jaxmetric.effective_centers(jnp.ones((1, 2, 3)), tolerance=-1.0)
    with pytest.raises(ValueError, match=r"centers has shape \(2, 3\), expected \[C, K, D\]"):
        effective_centers(jnp.ones((2, 3)))


def test_effective_centers_need_memory_linear_in_the_number_of_classes():
    # The differences of the centers of all classes at once would take [C, K, K, D]: 1 GB here.
    shape = jax.ShapeDtypeStruct((5000, 10, 512), np.float32)
    memory = effective_centers.lower(shape).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 300e6


def test_hard_triple_takes_the_nearest_center():
    embeddings, labels, centers = example(batch=9)
    nearest = (unit(centers) @ embeddings.T).max(axis=1).T
    logits = 20.0 * (nearest - 0.01 * np.eye(5)[labels])
    expected = -np.log(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))[np.arange(9), labels]
    with jax.enable_x64(True):
        actual = jax.jit(lambda x, w: jaxmetric.hard_triple_loss(x, labels, w, reduction="none"))(embeddings, centers)
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-13)


def test_hard_triple_is_soft_triple_with_a_small_gamma():
    embeddings, labels, centers = example(batch=9)

    def gradients(loss, **options):
        with jax.enable_x64(True):
            return jax.jit(jax.grad(lambda x, w: loss(x, labels, w, **options), argnums=(0, 1)))(embeddings, centers)

    hard = gradients(jaxmetric.hard_triple_loss)
    soft = gradients(jaxmetric.soft_triple_loss, gamma=1e-6, tau=0.0)
    for one, other in zip(hard, soft, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-9)


def test_centers_that_are_equally_near_share_the_gradient():
    centers = jnp.ones((1, 2, 2)) * jnp.array([[[1.0], [3.0]]])
    other = jnp.array([[[-1.0, 0.0], [-1.0, 0.0]]])

    def loss(centers):
        return jaxmetric.hard_triple_loss(jnp.array([[1.0, 0.0]]), np.array([0]), jnp.concatenate([centers, other]))

    gradient = jax.grad(loss)(centers)[0]
    np.testing.assert_allclose(gradient[0], 3 * gradient[1], rtol=1e-6)  # one is three times as long
