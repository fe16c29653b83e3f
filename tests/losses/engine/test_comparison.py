import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmetric.losses._engine import comparison
from jaxmetric.losses._engine.comparison import check_pairs, pair_weights
from jaxmetric.losses._engine.reduction import each_anchor, each_pair
from jaxmetric.references import References

A, R, D = 5, 7, 3


def compare(embeddings, labels, *, references=None, pairs=None, where=None, weights=None, **options):
    return comparison.compare(
        check_pairs(embeddings, labels, references, pairs, where, weights, "mean", False, **options)
    )


def example(seed=0, columns=1):
    rng = np.random.default_rng(seed)
    batch = rng.normal(size=(A, D)).astype(np.float32), rng.integers(0, 3, (A, columns))
    return batch, References(rng.normal(size=(R, D)).astype(np.float32), rng.integers(0, 3, (R, columns)))


def test_within_a_batch_an_example_is_not_compared_with_itself():
    labels = np.array([4, 4, 9, 4])
    compared = compare(np.ones((4, 2)), labels, needs_values=False)
    same = labels[:, None] == labels[None]
    np.testing.assert_array_equal(compared.positives, same & ~np.eye(4, dtype=bool))
    np.testing.assert_array_equal(compared.negatives, ~same)
    np.testing.assert_array_equal(compared.values, np.zeros((4, 4)))


@given(seed=st.integers(0, 2**32 - 1))
def test_references_masks_and_pairs_decide_what_is_compared(seed):
    (embeddings, labels), references = example(seed)
    rng = np.random.default_rng(seed)
    where, of_references = rng.random(A) < 0.7, rng.random(R) < 0.7
    pairs, own = rng.random((A, R)) < 0.8, rng.integers(-1, R, A)
    compared = compare(
        embeddings,
        labels,
        references=references._replace(where=of_references, own=own),
        pairs=pairs,
        where=where,
        needs_values=False,
    )
    for a in range(A):
        for r in range(R):
            compares = where[a] and of_references[r] and pairs[a, r] and own[a] != r
            same = labels[a, 0] == references.labels[r, 0]
            assert compared.positives[a, r] == (compares and same)
            assert compared.negatives[a, r] == (compares and not same)
    np.testing.assert_array_equal(compared.anchors, embeddings * where[:, None])
    np.testing.assert_array_equal(compared.references, references.embeddings * of_references[:, None])


@given(seed=st.integers(0, 2**32 - 1))
def test_with_several_labels_a_pair_is_positive_by_the_share_that_agrees(seed):
    (embeddings, labels), references = example(seed, columns=3)
    rng = np.random.default_rng(seed)
    known, of_references = rng.random((A, 3)) < 0.6, rng.random((R, 3)) < 0.6
    label_weights = (3, 1, 0.5)
    compared = compare(
        embeddings,
        labels,
        references=references._replace(where=of_references),
        where=known,
        multi_output=True,
        label_weights=label_weights,
        needs_values=False,
    )
    for a in range(A):
        for r in range(R):
            both = [t for t in range(3) if known[a, t] and of_references[r, t]]
            total = sum(label_weights[t] for t in both)
            agreed = sum(label_weights[t] for t in both if labels[a, t] == references.labels[r, t])
            expected = (agreed / total, 1 - agreed / total) if both else (0, 0)
            np.testing.assert_allclose((compared.positives[a, r], compared.negatives[a, r]), expected, atol=1e-6)
    np.testing.assert_array_equal(compared.anchor_weights, known.any(axis=1))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("squared_euclidean", lambda x, y: ((x - y) ** 2).sum()),
        ("euclidean", lambda x, y: np.sqrt(((x - y) ** 2).sum())),
        ("cosine", lambda x, y: 1 - x @ y / np.sqrt((x @ x) * (y @ y))),
        ("snr", lambda x, y: (x - y).var() / x.var()),
    ],
)
def test_distances_by_name(name, expected):
    (embeddings, labels), references = example()
    values = compare(embeddings, labels, distance=name, references=references).values
    brute_force = [[expected(x, y) for y in np.float64(references.embeddings)] for x in np.float64(embeddings)]
    np.testing.assert_allclose(values, brute_force, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "expected"), [("dot", lambda x, y: x @ y), ("cosine", lambda x, y: x @ y / np.sqrt((x @ x) * (y @ y)))]
)
def test_similarities_by_name(name, expected):
    (embeddings, labels), references = example()
    values = compare(embeddings, labels, similarity=name, references=references).values
    brute_force = [[expected(x, y) for y in np.float64(references.embeddings)] for x in np.float64(embeddings)]
    np.testing.assert_allclose(values, brute_force, rtol=1e-4)


def test_a_given_matrix_needs_no_embeddings_and_is_cleared_of_masked_rows():
    _, references = example()
    matrix = np.arange(A * R, dtype=np.float32).reshape(A, R)
    matrix[1], matrix[:, 2] = np.nan, np.inf
    where, of_references = np.arange(A) != 1, np.arange(R) != 2
    references = References(None, references.labels, where=of_references)
    compared = compare(None, np.zeros(A, int), distance=matrix, references=references, where=where)
    np.testing.assert_array_equal(compared.values, np.where(where[:, None] & of_references[None], matrix, 0))


def test_sums_of_pairs_and_anchors():
    losses = np.float32([[1, -2, np.nan], [3, 4, np.nan]])
    weights = np.float32([[2, 1, 0], [0.5, 0, 0]])
    total, valid, active = each_pair(losses, weights)
    np.testing.assert_array_equal(total, [0, 1.5])
    np.testing.assert_array_equal(valid, [3, 0.5])
    np.testing.assert_array_equal(active, [2, 0.5])
    total, valid, active = each_anchor(losses[0], weights[0])
    np.testing.assert_array_equal(total, [2, -2, 0])
    np.testing.assert_array_equal(valid, weights[0])
    np.testing.assert_array_equal(active, [2, 0, 0])


def test_the_weight_of_a_pair_is_the_product_of_its_members_weights():
    weights = np.float32([1, 2, 0, 4, 0.5])
    compared = compare(np.ones((A, D)), np.zeros(A, int), weights=weights, needs_values=False)
    expected = np.where(np.eye(A, dtype=bool), 0, np.outer(weights, weights))
    np.testing.assert_array_equal(pair_weights(compared, compared.positives), expected)


GALLERY = References(np.ones((R, D), np.float32), np.zeros(R, int))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"needs_values": True}, TypeError, "distance or similarity is None, expected a name, a function or an array"),
        ({"distance": "l2"}, ValueError, "distance is 'l2', expected one of squared_euclidean, euclidean, cosine, snr"),
        ({"similarity": "l2"}, ValueError, "similarity is 'l2', expected one of cosine, dot"),
        ({"distance": np.ones((A, A), int)}, TypeError, "distance has dtype int.*, expected a name, a function or"),
        ({"distance": np.ones(A)}, ValueError, r"distance has shape \(5,\), expected \[B, R\]"),
        ({"distance": np.ones((A, R))}, ValueError, r"distance has shape \(5, 7\), expected \(5, 5\)"),
        ({"distance": lambda x, y: x}, ValueError, r"distance gives shape \(5, 3\), expected \(5, 5\)"),
        ({"pairs": np.ones((A, R), bool)}, ValueError, r"pairs has shape \(5, 7\), expected \(5, 5\)"),
        ({"pairs": np.ones((A, A))}, TypeError, "pairs has dtype float.*, expected bool"),
        (
            {"references": GALLERY._replace(embeddings=np.ones((R, 4)))},
            ValueError,
            r"references.embeddings has rows of shape \(4,\), expected \(3,\) as embeddings",
        ),
        (
            {"references": GALLERY._replace(labels=np.zeros((R, 2), int)), "multi_output": True},
            ValueError,
            r"references.labels has rows of shape \(2,\), expected \(1,\) as labels",
        ),
        ({"references": GALLERY._replace(labels=np.zeros(A, int))}, ValueError, "references.labels has shape"),
        ({"references": GALLERY._replace(where=np.ones(R))}, TypeError, "references.where has dtype float.*"),
        ({"references": GALLERY._replace(weights=np.ones(A))}, ValueError, "references.weights has shape"),
        ({"references": GALLERY._replace(own=np.zeros(R, int))}, ValueError, r"references.own has shape \(7,\)"),
        ({"references": GALLERY._replace(own=np.zeros(A))}, TypeError, "references.own has dtype float"),
        ({"references": (1, 2)}, TypeError, "references is a tuple, expected jaxmetric.References"),
        ({"label_weights": (1, 2), "multi_output": True}, ValueError, "label_weights has 2 entries, expected one"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        compare(np.ones((A, D), np.float32), np.zeros(A, int), **({"needs_values": False} | arguments))


def test_it_is_traced_without_a_transfer():
    (embeddings, labels), references = example()
    with jax.transfer_guard("disallow_explicit"):
        jax.eval_shape(
            lambda x, y, r: compare(x, y, distance="euclidean", references=r), embeddings, labels, references
        )
