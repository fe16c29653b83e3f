import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from jaxmetric import anchored_quadruplet_loss, quadruplet_loss
from jaxmetric.agreement import check_disagreement
from jaxmetric.losses._engine.anchored_pairs import anchored_stats, draw_anchors
from jaxmetric.losses._engine.comparison import check_examples, masked_examples
from jaxmetric.losses._engine.reduction import reduce_stats
from jaxmetric.parallel import AXIS_NAME, average, drive_shard_map, gather

B, T, D = 7, 3, 3

OPTIONS = [
    {},
    {"agreement": "any", "reduction": "sum"},
    {"balance": "levels"},
    {"label_weights": (4, 2, 1), "ordinal": (None, 2, 0), "balance": "levels"},
]
every_option = pytest.mark.parametrize(
    "options",
    [OPTIONS[0], *(pytest.param(options, marks=pytest.mark.slow) for options in OPTIONS[1:3]), OPTIONS[3]],
    ids=lambda options: ",".join(f"{name}={value}" for name, value in options.items()),
)


def example(batch=B, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(batch, D)).astype(np.float32), rng.integers(0, 2, (batch, T)).astype(np.int32)


def loss_of(anchors, embeddings, margin, labels, where, weights, *, axis_name=None, reduction="mean", **options):
    """The loss of given anchors, instead of random ones, and its stats."""
    options = {"agreement": "count", "balance": "quadruplets", "label_weights": None, "ordinal": None} | options
    balance = options.pop("balance")
    batch = masked_examples(check_examples(embeddings, labels, where, weights, multi_output=True))
    disagreement = check_disagreement(labels.shape[1], **options)
    stats = anchored_stats(batch, anchors, margin, disagreement=disagreement, balance=balance, axis_name=axis_name)
    return reduce_stats(stats, reduction), stats


def exact(embeddings, margin, labels, where, weights, **options):
    return quadruplet_loss(embeddings, labels, margin=margin, where=where, weights=weights, has_aux=True, **options)


def assert_equal(actual, expected, rtol=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max()), actual, expected
    )


def masked_example():
    """An example with a missing label, one without any label, and one that weighs nothing."""
    where = np.ones((B, T), bool)
    where[0, 1] = where[3, 2] = where[4] = False
    return *example(), where, np.float32([0.5, 3, 1, 1, 1, 0, 2])


@every_option
def test_the_mean_over_all_sets_of_anchors_is_the_exact_loss_and_its_gradient(options):
    with jax.enable_x64(True):
        embeddings, labels, where, weights = masked_example()
        sets = np.array(list(itertools.combinations([0, 1, 2, 3, 6], 3)))  # drawn equally often
        arguments = np.float64(embeddings), 2.0, labels, where, np.float64(weights)
        exactly = jax.jit(jax.value_and_grad(partial(exact, **options), argnums=(0, 1), has_aux=True))
        (loss, stats), gradients = exactly(*arguments)
        assert loss > 0
        anchored = jax.value_and_grad(partial(loss_of, **options), argnums=(1, 2), has_aux=True)
        each = jax.jit(jax.vmap(anchored, in_axes=(0, *[None] * 5)))(sets, *arguments)
        assert_equal(jax.tree.map(lambda x: x.mean(0), each), ((loss, stats), gradients), rtol=1e-10)
        (_, each_stats), _ = each
        assert_equal(each_stats.valid, np.full(len(sets), stats.valid), rtol=1e-10)  # no estimate
        assert np.std(each_stats.total) > 0


@pytest.mark.parametrize(("batch", "options"), [(6, OPTIONS[0]), (7, OPTIONS[-1])], ids=["even", "odd"])
def test_with_every_example_an_anchor_it_is_the_exact_loss(batch, options):
    embeddings, labels, where, weights = (array[-batch:] for array in masked_example())
    options = {"margin": 2.0, "where": where, "weights": weights, "has_aux": True} | options

    def both(embeddings):
        anchored = anchored_quadruplet_loss(jax.random.key(0), embeddings, labels, num_anchors=batch, **options)
        return anchored, quadruplet_loss(embeddings, labels, **options)

    anchored, expected = jax.jit(both)(embeddings)
    assert_equal(anchored, expected)


def test_the_mean_over_all_sets_of_anchors_of_two_devices_is_the_exact_loss_for_any_number_of_anchors():
    embeddings, labels = example(seed=3)
    labels[:3] = [[0, 0, 0], [0, 0, 0], [1, 0, 1]]
    orders = np.array(list(itertools.permutations(range(5))))
    five = np.unique(np.sort(orders[:, :4].reshape(-1, 2, 2), axis=-1), axis=0)  # 2 anchors each of five examples
    three = np.array([[[0, 1], [2, 5]], [[0, 2], [1, 5]], [[1, 2], [0, 5]]])  # 2 and 1 of three; 5 is masked
    with jax.enable_x64(True):
        exactly = jax.jit(jax.value_and_grad(exact, has_aux=True))
        anchored = jax.value_and_grad(partial(loss_of, axis_name=AXIS_NAME), argnums=1, has_aux=True)
        devices = jax.vmap(anchored, in_axes=(0, *[None] * 5), axis_name=AXIS_NAME)
        each = jax.jit(jax.vmap(devices, in_axes=(0, *[None] * 5)))
        for count, sets in ((5, five), (3, np.tile(three, (10, 1, 1)))):
            arguments = np.float64(embeddings), 2.0, labels, np.arange(B) < count, np.ones(B)
            (expected, _), expected_gradient = exactly(*arguments)
            assert expected > 0
            (losses, _), gradients = each(sets, *arguments)
            np.testing.assert_array_equal(losses[:, 0], losses[:, 1])
            means = losses.mean(), gradients.mean((0, 1))
            assert_equal(means, (expected, expected_gradient), rtol=1e-10)


def test_devices_return_the_mean_of_the_estimates_from_their_own_anchors():
    batch, num_anchors = 32, 3
    embeddings, labels = example(batch)
    where = np.arange(batch) < 28
    kernel, key = np.eye(D, dtype=np.float32) + 0.1, jax.random.key(4)

    def step(kernel, shard, *, axis_name):
        def loss_fn(kernel):
            x, y, valid = gather((shard["x"] @ kernel, shard["y"], shard["where"]), axis_name)
            return anchored_quadruplet_loss(key, x, y, num_anchors=num_anchors, where=valid, axis_name=axis_name)

        loss, gradient = jax.value_and_grad(loss_fn)(kernel)
        return kernel, {"losses": gather(loss[None], axis_name), "gradient": average(gradient, axis_name)}

    parts = draw_anchors(key, jnp.array(where), 8 * num_anchors, None).reshape(8, num_anchors)

    @jax.jit
    @jax.value_and_grad
    def alone(kernel):
        arguments = embeddings @ kernel, 0.1, labels, where, np.ones(batch, np.float32)
        return jnp.mean(jax.vmap(lambda anchors: loss_of(anchors, *arguments)[0])(parts))

    loss, gradient = alone(kernel)
    _, metrics = drive_shard_map(step)(kernel, {"x": embeddings, "y": labels, "where": where})
    assert_equal(metrics, {"losses": np.full(8, loss), "gradient": gradient})


def test_anchors_are_drawn_uniformly_from_the_valid_examples_and_disjoint_on_all_devices():
    valid = jnp.arange(7) != 2
    keys = jax.random.split(jax.random.key(0), 6000)
    anchors = np.asarray(jax.jit(jax.vmap(lambda key: draw_anchors(key, valid, 2, None)))(keys))
    counts = [
        np.sum(np.all(np.sort(anchors, axis=1) == pair, axis=1))
        for pair in itertools.combinations(np.flatnonzero(valid), 2)
    ]
    assert sum(counts) == len(keys)
    assert chisquare(counts).pvalue > 1e-3

    def of_device(key, _):
        return draw_anchors(key, valid, 2, AXIS_NAME)

    on_devices = jax.vmap(of_device, in_axes=(None, 0), axis_name=AXIS_NAME)(keys[0], np.zeros(3))
    np.testing.assert_array_equal(on_devices[0], anchors[0])
    np.testing.assert_array_equal(np.sort(on_devices.ravel()), np.flatnonzero(valid))


@jax.jit
@partial(jax.value_and_grad, argnums=1)
def of_three_anchors(key, embeddings, labels, where, weights):
    return anchored_quadruplet_loss(key, embeddings, labels, num_anchors=3, margin=2.0, where=where, weights=weights)


def test_with_fewer_valid_examples_than_anchors_it_is_the_exact_loss():
    embeddings, labels = example(seed=3)
    labels[:3] = [[0, 0, 0], [0, 0, 0], [1, 0, 1]]
    value_and_grad = jax.jit(jax.value_and_grad(exact, has_aux=True))
    for count in range(4):
        mask_and_weights = np.arange(B) < count, np.ones(B, np.float32)
        (expected, _), gradient = value_and_grad(embeddings, 2.0, labels, *mask_and_weights)
        anchored = of_three_anchors(jax.random.key(0), embeddings, labels, *mask_and_weights)
        assert_equal(anchored, (expected, gradient))
        assert bool(expected) == (count == 3)


def test_one_class_is_0_without_gradient():
    embeddings, labels = example()
    arguments = embeddings, np.zeros_like(labels), np.ones(B, bool), np.ones(B, np.float32)
    loss, gradient = of_three_anchors(jax.random.key(0), *arguments)
    assert loss == 0
    np.testing.assert_array_equal(gradient, 0)


def test_a_nan_or_invalid_weight_stays_visible_even_if_it_is_not_an_anchor():
    embeddings, labels = example()
    for seed in range(3):
        key = jax.random.key(seed)
        other = np.setdiff1d(range(B), draw_anchors(key, jnp.ones(B, bool), 3, None))[0]
        for embedding, weight in ((np.nan, 1), (0, -1), (0, np.nan)):
            x, weights = embeddings.copy(), np.ones(B, np.float32)
            x[other, 1], weights[other] = embedding, weight
            assert not np.isfinite(of_three_anchors(key, x, labels, np.ones(B, bool), weights)[0])


def test_a_batch_is_never_compared_with_itself():
    batch = 4096
    shapes = jax.ShapeDtypeStruct((batch, 16), np.float32), jax.ShapeDtypeStruct((batch, 2), np.int32)
    loss = partial(anchored_quadruplet_loss, jax.random.key(0), num_anchors=16)
    program = jax.jit(jax.value_and_grad(loss)).lower(*shapes).compile()
    assert program.memory_analysis().temp_size_in_bytes < batch**2


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_anchors": 1}, ValueError, "num_anchors is 1, expected a static integer of at least 2"),
        ({"num_anchors": 2.0}, TypeError, "num_anchors is 2.0, expected a static integer"),
        ({"num_anchors": 8}, ValueError, r"num_anchors is 8 on each of 1 devices, expected at most 7: .* 7 examples"),
        ({"margin": np.inf}, ValueError, "margin is inf, expected"),
        ({"agreement": "all"}, ValueError, "agreement is 'all', expected one of count, any"),
        ({"balance": "pairs"}, ValueError, "balance is 'pairs', expected one of quadruplets, levels"),
        ({"label_weights": (1, 2)}, ValueError, "label_weights has 2 entries, expected one for each of 3"),
        ({"reduction": "none"}, ValueError, "reduction is 'none', expected one of mean, mean_active, sum"),
    ],
)
def test_bad_arguments_are_named(options, error, message):
    with pytest.raises(error, match=message) as raised:
        anchored_quadruplet_loss(jax.random.key(0), *example(), **({"num_anchors": 2} | options))
    assert "\n" not in str(raised.value)


def test_more_anchors_than_examples_on_all_devices_are_named():
    def on_device(embeddings, labels):
        gathered = gather((embeddings, labels), AXIS_NAME)
        return anchored_quadruplet_loss(jax.random.key(0), *gathered, num_anchors=3, axis_name=AXIS_NAME)

    embeddings, labels = example(8)
    with pytest.raises(ValueError, match=r"num_anchors is 3 on each of 4 devices, expected at most 2: .* 8 examples"):
        jax.vmap(on_device, axis_name=AXIS_NAME)(embeddings.reshape(4, 2, D), labels.reshape(4, 2, T))
