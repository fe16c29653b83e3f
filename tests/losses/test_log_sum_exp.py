"""The losses made of log-sum-exps (log_sum_exp.py) against their definitions, spelled in loops."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmetric.losses import log_sum_exp
from jaxmetric.losses._engine.reduction import LossStats
from jaxmetric.references import References

B, D, T = 10, 3, 3
LABEL_WEIGHTS = (2.0, 1.0, 1.0)
seeds = st.integers(0, 2**32 - 1)


class Pairs(NamedTuple):
    """Anchors and references in float64; what is masked is neither alike nor unlike."""

    values: np.ndarray  # [A, R]
    alike: np.ndarray  # [A, R]: the share of the labels that agree
    unlike: np.ndarray  # [A, R]: the share that differs
    weights: np.ndarray  # [A]
    of_references: np.ndarray  # [R]: their weights
    between: np.ndarray  # [R, R]: values of references with each other
    unlike_between: np.ndarray  # [R, R]


# A definition yields (anchor, weight, loss).
Terms = Iterator[tuple[int, float, float]]


def positive_pairs(x: Pairs) -> Iterator[tuple[int, int, float]]:
    for a, p in zip(*np.nonzero(x.alike), strict=True):
        yield a, p, x.weights[a] * x.of_references[p] * x.alike[a, p]


def anchors_with(x: Pairs, *masks: np.ndarray) -> Iterator[int]:
    return (a for a in np.flatnonzero(x.weights) if all(mask[a].any() for mask in masks))


def ntxent(x: Pairs, temperature: float) -> Terms:
    for a, p, weight in positive_pairs(x):
        similar = np.exp(x.values[a] / temperature)
        against = sum(x.unlike[a, n] * similar[n] for n in range(len(similar)) if n != p)
        yield a, weight, -math.log(similar[p] / (similar[p] + against))


def n_pairs(x: Pairs) -> Terms:
    for a, p, weight in positive_pairs(x):
        negatives = np.flatnonzero(x.unlike[a])
        yield a, weight, math.log(1 + sum(math.exp(x.values[a, n] - x.values[a, p]) for n in negatives))


def tuplet_margin(x: Pairs, margin: float, scale: float) -> Terms:
    angles = np.arccos(np.clip(x.values, -1, 1))
    for a, p, weight in positive_pairs(x):
        positive = math.cos(angles[a, p] - margin)
        negatives = np.flatnonzero(x.unlike[a])
        yield a, weight, math.log(1 + sum(math.exp(scale * (math.cos(angles[a, n]) - positive)) for n in negatives))


def supcon(x: Pairs, temperature: float) -> Terms:
    for a in anchors_with(x, x.alike, x.unlike):
        shares = x.alike[a] * x.of_references
        similar = np.exp(x.values[a] / temperature)
        denominator = similar[(x.alike[a] > 0) | (x.unlike[a] > 0)].sum()
        yield a, x.weights[a], -sum(shares * np.log(similar / denominator)) / sum(shares)


def nca(x: Pairs, softmax_scale: float) -> Terms:
    for a in anchors_with(x, x.alike):
        near = np.exp(-softmax_scale * x.values[a])
        yield a, x.weights[a], -math.log(near @ x.alike[a] / (near @ x.alike[a] + near @ x.unlike[a]))


def instance(x: Pairs, gamma: float) -> Terms:
    for a in anchors_with(x, x.unlike):
        similar = np.exp(gamma * x.values[a])
        right = math.exp(gamma) + similar @ x.alike[a]
        yield a, x.weights[a], -math.log(right / (right + similar @ x.unlike[a]))


def multi_similarity(x: Pairs, alpha: float, beta: float, base: float) -> Terms:
    for a in anchors_with(x, x.alike, x.unlike):
        positive = math.log(1 + x.alike[a] @ np.exp(-alpha * (x.values[a] - base))) / alpha
        negative = math.log(1 + x.unlike[a] @ np.exp(beta * (x.values[a] - base))) / beta
        yield a, x.weights[a], positive + negative


def circle(x: Pairs, margin: float, gamma: float, constant: np.ndarray | None = None) -> Terms:
    constant = x.values if constant is None else constant
    for a in anchors_with(x, x.alike, x.unlike):
        pull, push = np.maximum(1 + margin - constant[a], 0), np.maximum(constant[a] + margin, 0)
        negatives = x.unlike[a] @ np.exp(gamma * push * (x.values[a] - margin))
        positives = x.alike[a] @ np.exp(-gamma * pull * (x.values[a] - (1 - margin)))
        yield a, x.weights[a], math.log(1 + negatives * positives)


def lifted_structure(x: Pairs, margin: float) -> Terms:
    for a, p, weight in positive_pairs(x):
        of_anchor = x.unlike[a] @ np.exp(margin - x.values[a])
        of_positive = x.unlike_between[p] @ np.exp(margin - x.between[p])
        both = of_anchor + of_positive
        yield a, weight, max(x.values[a, p] + math.log(both), 0) ** 2 / 2 if both else 0


def generalized_lifted_structure(x: Pairs, margin: float) -> Terms:
    for a in anchors_with(x, x.alike, x.unlike):
        positive = math.log(x.alike[a] @ np.exp(x.values[a]))
        negative = math.log(x.unlike[a] @ np.exp(margin - x.values[a]))
        yield a, x.weights[a], max(positive + negative, 0)


def cosines(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (y / np.linalg.norm(y, axis=1, keepdims=True)).T


def products(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return x @ y.T


def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(((x[:, None] - y[None]) ** 2).sum(-1))


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return distances(x, y) ** 2


class Case(NamedTuple):
    loss: Callable[..., Any]
    definition: Callable[..., Terms]
    values: Callable[[np.ndarray, np.ndarray], np.ndarray]
    argument: str
    options: dict[str, float]  # mild, so that no term of a sum vanishes beside the others


CASES = {
    "ntxent": Case(log_sum_exp.ntxent_loss, ntxent, cosines, "similarity", {"temperature": 0.5}),
    "n_pairs": Case(log_sum_exp.n_pairs_loss, n_pairs, products, "similarity", {}),
    "tuplet_margin": Case(
        log_sum_exp.tuplet_margin_loss, tuplet_margin, cosines, "similarity", {"margin": 0.3, "scale": 3.0}
    ),
    "supcon": Case(log_sum_exp.supcon_loss, supcon, cosines, "similarity", {"temperature": 0.5}),
    "nca": Case(log_sum_exp.nca_loss, nca, squared_distances, "distance", {"softmax_scale": 0.7}),
    "instance": Case(log_sum_exp.instance_loss, instance, cosines, "similarity", {"gamma": 3.0}),
    "multi_similarity": Case(
        log_sum_exp.multi_similarity_loss,
        multi_similarity,
        cosines,
        "similarity",
        {"alpha": 2.0, "beta": 5.0, "base": 0.3},
    ),
    "circle": Case(log_sum_exp.circle_loss, circle, cosines, "similarity", {"margin": 0.3, "gamma": 3.0}),
    "lifted_structure": Case(
        log_sum_exp.lifted_structure_loss, lifted_structure, distances, "distance", {"margin": 0.8}
    ),
    "generalized_lifted_structure": Case(
        log_sum_exp.generalized_lifted_structure_loss,
        generalized_lifted_structure,
        distances,
        "distance",
        {"margin": 0.4},
    ),
}
every_loss = pytest.mark.parametrize("name", CASES)
every_multi_output_loss = pytest.mark.parametrize("name", ["ntxent", "supcon", "multi_similarity"])


@partial(jax.jit, static_argnames=("name", "label_weights"))
def evaluate(name, embeddings, labels, options, label_weights=None):
    """`[B]` values of the anchors, and the stats; one program per loss and kind of options."""
    static = {} if label_weights is None else {"label_weights": label_weights}
    return CASES[name].loss(
        embeddings, labels, **CASES[name].options, **options, **static, reduction="none", has_aux=True
    )


def shares(labels, others, known, others_known, allowed, label_weights):
    """The share of the labels known of both that agree, and that differ; 0 and 0 where a pair is not allowed."""
    alike, unlike = np.zeros(allowed.shape), np.zeros(allowed.shape)
    for a, r in zip(*np.nonzero(allowed), strict=True):
        columns = [t for t in range(labels.shape[1]) if known[a, t] and others_known[r, t]]
        total = sum(label_weights[t] for t in columns)
        if total:
            alike[a, r] = sum(label_weights[t] for t in columns if labels[a, t] == others[r, t]) / total
            unlike[a, r] = 1 - alike[a, r]
    return alike, unlike


def expected(name, embeddings, labels, options, label_weights=(1.0,), definition=None):
    """What `evaluate` should give, by the definition of the loss."""
    case = CASES[name]

    def side(embeddings, labels, where, weights):
        known = np.ones((len(labels), 1), bool) if where is None else np.reshape(where, (len(labels), -1))
        weights = np.ones(len(labels)) if weights is None else weights
        columns = np.reshape(labels, (len(labels), -1))
        weights = np.where(known.any(1), weights, 0)
        return np.float64(embeddings), columns, np.broadcast_to(known, columns.shape), weights

    batch = side(embeddings, labels, options.get("where"), options.get("weights"))
    references = options.get("references", References(*batch, own=np.arange(len(batch[1]))))
    others = side(*references[:4])
    own = np.full(len(batch[1]), -1) if references.own is None else references.own
    allowed = (own[:, None] != np.arange(len(others[1]))) & np.outer(batch[3], others[3]).astype(bool)
    between = ~np.eye(len(others[1]), dtype=bool) & np.outer(others[3], others[3]).astype(bool)
    if "references" not in options:
        between = allowed & options.get("pairs", True)
    allowed &= options.get("pairs", True)
    alike, unlike = shares(batch[1], others[1], batch[2], others[2], allowed, label_weights)
    _, unlike_between = shares(others[1], others[1], others[2], others[2], between, label_weights)
    values, values_between = case.values(batch[0], others[0]), case.values(others[0], others[0])
    pairs = Pairs(values, alike, unlike, batch[3], others[3], values_between, unlike_between)
    totals, valid, active = np.zeros(len(batch[1])), 0.0, 0.0
    for anchor, weight, loss in (definition or case.definition)(pairs, **case.options):
        totals[anchor] += weight * loss
        valid += weight
        active += weight * (loss > 0)
    return totals, LossStats(totals.sum(), valid, active)


def assert_as_defined(name, embeddings, labels, options, label_weights=None):
    actual = evaluate(name, embeddings, labels, options, label_weights)
    definition = expected(name, embeddings, labels, options, label_weights or (1.0,))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), actual, definition)


def example(seed=0, classes=4):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(B, D)).astype(np.float32), rng.integers(0, classes, B).astype(np.int32)


def some_weights(rng):
    return rng.choice(np.float32([0, 0.5, 1, 3]), B)


@every_loss
@given(seed=seeds, classes=st.sampled_from([1, 2, 4, 30]))
def test_is_its_definition(name, seed, classes):
    weights = some_weights(np.random.default_rng(seed))
    assert_as_defined(name, *example(seed, classes), {"weights": weights})


@every_loss
@given(seed=seeds)
def test_references_and_chosen_pairs(name, seed):
    rng = np.random.default_rng(seed)
    gallery = References(*example(seed + 1), rng.random(B) < 0.8, some_weights(rng), rng.integers(-1, B, B))
    options = {"references": gallery, "pairs": rng.random((B, B)) < 0.7, "weights": some_weights(rng)}
    assert_as_defined(name, *example(seed), options)


@every_loss
def test_pairs_of_a_batch(name):
    pairs = np.random.default_rng(5).random((B, B)) < 0.6
    assert_as_defined(name, *example(), {"pairs": pairs})


@every_loss
def test_shares_of_anchors_add_up_to_the_batch(name):
    """What a device computes of its own anchors against the examples of all."""
    batch = example()
    references = References(*batch, np.ones(B, bool), np.ones(B, np.float32), np.arange(B))
    whole, _ = evaluate(name, *batch, {"weights": np.ones(B, np.float32)})
    for here in (np.arange(B) < 4, np.arange(B) >= 4):
        options = {"references": references, "pairs": np.ones((B, B), bool), "weights": here.astype(np.float32)}
        part, _ = evaluate(name, *batch, options)
        np.testing.assert_allclose(part, np.where(here, whole, 0), rtol=1e-5, atol=1e-6)


@every_multi_output_loss
@given(seed=seeds)
def test_several_columns_of_labels_some_missing(name, seed):
    rng = np.random.default_rng(seed)
    labels, where = rng.integers(0, 3, (B, T)).astype(np.int32), rng.random((B, T)) < 0.8
    where[1] = False
    options = {"where": where, "weights": some_weights(rng)}
    assert_as_defined(name, example(seed)[0], labels, options, LABEL_WEIGHTS)


@every_multi_output_loss
def test_equal_columns_are_one_column(name):
    embeddings, labels = example()
    weights = {"weights": np.ones(B, np.float32)}
    several = evaluate(name, embeddings, np.stack([labels] * T, axis=1), weights, LABEL_WEIGHTS)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), several, evaluate(name, embeddings, labels, weights))


@every_loss
def test_values_may_be_given_instead(name):
    embeddings, labels = example()
    case = CASES[name]
    values = case.values(*[embeddings.astype(np.float64)] * 2).astype(np.float32)
    loss = case.loss(None, labels, **{case.argument: values}, **case.options, reduction="sum")
    np.testing.assert_allclose(loss, expected(name, embeddings, labels, {})[1].total, rtol=1e-5)


@every_loss
def test_needs_memory_quadratic_in_the_batch(name):
    shapes = jax.ShapeDtypeStruct((256, 8), np.float32), jax.ShapeDtypeStruct((256,), np.int32)
    compiled = jax.jit(jax.value_and_grad(CASES[name].loss)).lower(*shapes).compile()
    # A few [B, B] arrays, where each positive pair against each negative one takes thousands.
    assert compiled.memory_analysis().temp_size_in_bytes < 16 * 4 * 256**2


@every_loss
@pytest.mark.parametrize("number", [float, np.float32, jnp.float32])
def test_promotes_no_dtype_and_no_rank_implicitly(name, number):
    numbers = {option: number(value) for option, value in CASES[name].options.items()}
    embeddings, labels = example()
    references = References(embeddings, labels, weights=np.ones(B, np.float32))
    call = partial(CASES[name].loss, weights=np.ones(B, np.float32), references=references, **numbers)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        gradient = jax.eval_shape(jax.grad(call), embeddings, labels)
    assert gradient.dtype == np.float32


@every_loss
def test_far_positives_and_near_negatives_do_not_saturate(name):
    """Exponentials which would overflow or vanish: the loss is still about the largest gap, and has a gradient."""
    embeddings = np.float32([[30, 0], [0, 20], [29, 1]])
    loss, gradient = jax.jit(jax.value_and_grad(CASES[name].loss))(embeddings, np.int32([0, 0, 1]))
    assert np.isfinite(loss)
    assert loss > 0
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 1e-4


def test_n_pairs_of_one_pair_per_class_is_the_loss_of_the_paper():
    anchors, positives = example(1)[0], example(2)[0]
    products = np.float64(anchors) @ np.float64(positives).T
    paper = np.mean([math.log(1 + sum(np.exp(np.delete(row - row[i], i)))) for i, row in enumerate(products)])
    loss = log_sum_exp.n_pairs_loss(anchors, np.arange(B), references=References(positives, np.arange(B)))
    np.testing.assert_allclose(loss, paper, rtol=1e-5)


def test_a_positive_within_the_slack_is_pulled_no_closer():
    def loss(angle):
        embeddings = jnp.stack([jnp.array([1.0, 0.0]), jnp.stack([jnp.cos(angle), jnp.sin(angle)]), -jnp.ones(2)])
        return log_sum_exp.tuplet_margin_loss(embeddings, np.int32([0, 0, 1]), margin=0.3, scale=1.0, pairs=first)

    first = np.arange(3)[:, None] == np.zeros((1, 3))  # only the pairs of the first example
    slope = jax.jit(jax.grad(loss))
    assert slope(0.5) > 1e-3
    assert abs(slope(0.3)) < 1e-5
    assert slope(0.1) < -1e-3


def test_coinciding_positives_have_a_finite_angle():
    embeddings = np.float32([[1, 2, 3], [1, 2, 3], [10, 20, 30], [3, -1, 0]])
    gradient = jax.jit(jax.grad(log_sum_exp.tuplet_margin_loss))(embeddings, np.int32([0, 0, 0, 1]))
    assert np.abs(gradient).max() < 1


def test_the_weights_of_the_circle_loss_are_constants():
    embeddings, labels = example()
    x = embeddings.astype(np.float64)
    direction = np.random.default_rng(1).normal(size=x.shape)

    def total(step):
        definition = partial(circle, constant=cosines(x, x))
        return expected("circle", x + step * direction, labels, {}, definition=definition)[1].total

    def loss(x):
        return log_sum_exp.circle_loss(x, labels, **CASES["circle"].options, reduction="sum")

    slope = np.vdot(jax.jit(jax.grad(loss))(embeddings), direction)
    np.testing.assert_allclose(slope, (total(1e-6) - total(-1e-6)) / 2e-6, rtol=1e-4)


def test_with_distinct_labels_the_instance_loss_separates_every_example():
    embeddings, _ = example()
    logits = 5 * cosines(*[embeddings.astype(np.float64)] * 2)
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    loss = log_sum_exp.instance_loss(embeddings, np.arange(B), gamma=5.0)
    np.testing.assert_allclose(loss, -np.log(np.diag(softmax)).mean(), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("ntxent", {"temperature": 0.0}, ValueError, "temperature is 0, expected a finite number above 0"),
        ("ntxent", {"similarity": "euclidean"}, ValueError, "similarity is 'euclidean', expected one of cosine, dot"),
        ("ntxent", {"label_weights": (1.0, 2.0)}, ValueError, "label_weights has 2 entries"),
        ("n_pairs", {"labels": np.zeros((B, 2), int)}, ValueError, r"labels has shape \(10, 2\), expected one column"),
        (
            "tuplet_margin",
            {"margin": 5.73},
            ValueError,
            "margin is 5.73, expected radians of .* and below 1.57",
        ),
        ("tuplet_margin", {"margin": -0.1}, ValueError, "margin is -0.1, expected radians of at least 0"),
        ("tuplet_margin", {"scale": 0}, ValueError, "scale is 0, expected a finite number above 0"),
        ("supcon", {"temperature": np.ones(2)}, ValueError, r"temperature has shape \(2,\), expected a scalar"),
        (
            "supcon",
            {"reduction": "avg"},
            ValueError,
            "reduction is 'avg', expected one of mean, mean_active, sum, none",
        ),
        ("nca", {"softmax_scale": -1.0}, ValueError, "softmax_scale is -1, expected a finite number above 0"),
        ("nca", {"distance": "cosines"}, ValueError, "distance is 'cosines', expected one of squared_euclidean"),
        ("instance", {"gamma": "64"}, TypeError, "gamma is '64', expected a number"),
        ("multi_similarity", {"alpha": 0.0}, ValueError, "alpha is 0, expected a finite number above 0"),
        ("multi_similarity", {"beta": math.inf}, ValueError, "beta is inf, expected a finite number above 0"),
        ("multi_similarity", {"base": math.nan}, ValueError, "base is nan, expected a finite number"),
        ("circle", {"gamma": 0.0}, ValueError, "gamma is 0, expected a finite number above 0"),
        ("circle", {"margin": math.nan}, ValueError, "margin is nan, expected a finite number"),
        ("lifted_structure", {"margin": math.inf}, ValueError, "margin is inf, expected a finite number"),
        (
            "lifted_structure",
            {"distance": np.ones((B, 2), np.float32), "references": References(np.ones((2, D)), np.arange(2))},
            ValueError,
            "distance is an array, expected a name or a function",
        ),
        ("generalized_lifted_structure", {"pairs": np.ones((B, 3), bool)}, ValueError, r"pairs has shape \(10, 3\)"),
    ],
)
def test_bad_input_is_one_clear_line(name, options, error, message):
    embeddings, labels = example()
    with pytest.raises(error, match=message) as raised:
        CASES[name].loss(**{"embeddings": embeddings, "labels": labels, **options})
    assert "\n" not in str(raised.value)
