import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from jaxmetric.metrics import (
    join_scores,
    map_at_r,
    precision_at_k,
    r_precision,
    recall_at_k,
    relevance,
)

METRICS = (lambda found: recall_at_k(found, 3), lambda found: precision_at_k(found, 3), r_precision, map_at_r)


def rankings(seed, queries=5, gallery=9, values=3):
    """Makes random neighbor lists over the whole gallery, and labels, some of them missing."""
    rng = np.random.default_rng(seed)
    neighbors = np.stack([rng.permutation(gallery) for _ in range(queries)])
    return neighbors, rng.integers(-1, values + 1, queries), rng.integers(-1, values, gallery)


def by_definition(ranked, label, labels):
    """Computes the four metrics of one query by loops; None if no gallery row has its label."""
    hits = [label >= 0 and labels[i] == label for i in ranked]
    total = sum(hits)
    if total == 0:
        return None
    precisions = [sum(hits[: i + 1]) / (i + 1) if hits[i] else 0 for i in range(total)]
    return float(any(hits[:3])), sum(hits[:3]) / 3, sum(hits[:total]) / total, sum(precisions) / total


@given(seed=st.integers(0, 2**32 - 1))
def test_metrics_follow_their_definitions_and_skip_undefined_queries(seed):
    neighbors, query_labels, gallery_labels = rankings(seed)
    found = relevance(neighbors, query_labels, gallery_labels)
    expected = [by_definition(*query, gallery_labels) for query in zip(neighbors, query_labels, strict=True)]
    defined = [values for values in expected if values is not None]
    for number, metric in enumerate(METRICS):
        score = metric(found)
        assert (score.queries, score.undefined) == (len(defined), len(expected) - len(defined))
        if defined:
            assert score.mean == pytest.approx(np.mean([values[number] for values in defined]))
        else:
            assert score.mean is None


def test_metrics_of_a_worked_example():
    # Three relevant rows, at ranks 1, 3 and 6.
    found = relevance(np.arange(6)[None, :], np.array([4]), np.array([4, 0, 4, 0, 0, 4]))
    assert recall_at_k(found, 1).mean == 1
    assert precision_at_k(found, 4).mean == 2 / 4
    assert r_precision(found).mean == 2 / 3
    assert map_at_r(found).mean == pytest.approx((1 / 1 + 2 / 3) / 3)


def test_map_at_r_is_average_precision_if_all_relevant_rows_come_first():
    labels = np.array([1, 1, 1, 0, 0])
    found = relevance(np.arange(5)[None, :], np.array([1]), labels)
    assert map_at_r(found).mean == average_precision_score(labels, -np.arange(5)) == 1


def test_recall_grows_with_k_to_one():
    found = relevance(*rankings(0, queries=50))
    recalls = [recall_at_k(found, k).mean for k in range(1, 10)]
    assert recalls == sorted(recalls)
    assert recalls[-1] == 1


def test_a_query_that_excludes_the_only_row_with_its_label_is_undefined():
    labels = np.array([0, 0, 1])
    neighbors = np.array([[1, 2], [0, 2], [1, 0]])
    found = relevance(neighbors, labels, labels, exclude=np.arange(3))
    np.testing.assert_array_equal(found.counts, [1, 1, 0])
    assert recall_at_k(found, 1).mean == 1
    assert recall_at_k(found, 1).undefined == 1


def test_an_absent_neighbor_is_irrelevant():
    found = relevance(np.array([[0, -1], [-1, -1]]), np.array([5, 5]), np.array([5, 5]))
    assert found.hits.tolist() == [[True, False], [False, False]]
    assert relevance(np.full((1, 2), -1), np.array([5]), np.zeros(0, int)).counts.tolist() == [0]


def test_missing_labels_do_not_match_each_other():
    found = relevance(np.array([[0, 1]]), np.array([-1]), np.array([-1, 0]))
    assert not found.hits.any()
    np.testing.assert_array_equal(found.counts, [0])


def test_joined_scores_of_blocks_equal_the_score_of_all():
    neighbors, query_labels, gallery_labels = rankings(3, queries=20)
    whole = map_at_r(relevance(neighbors, query_labels, gallery_labels))
    parts = [
        map_at_r(relevance(neighbors[rows], query_labels[rows], gallery_labels))
        for rows in (slice(0, 13), slice(13, 20))
    ]
    for joined, expected in zip(join_scores(parts), whole, strict=True):
        np.testing.assert_array_equal(joined, expected)


def test_lists_too_short_for_the_metric_are_named():
    found = relevance(np.array([[0, 1]]), np.array([1]), np.array([1, 1, 1]))
    with pytest.raises(ValueError, match="neighbor lists have 2 entries, k is 5"):
        recall_at_k(found, 5)
    with pytest.raises(ValueError, match="neighbor lists have 2 entries, R is 3"):
        map_at_r(found)
    with pytest.raises(ValueError, match="k is 0, expected at least 1"):
        precision_at_k(found, 0)


@pytest.mark.parametrize(
    ("neighbors", "query_labels", "gallery_labels", "error", "message"),
    [
        ([0, 1], [1], [1, 1], ValueError, r"neighbors has shape \(2,\), expected \[Q, K\]"),
        ([[0]], [1, 1], [1], ValueError, r"query_labels has shape \(2,\), expected \(1,\)"),
        ([[0]], [-2], [1], ValueError, "query_labels has the value -2, expected"),
        ([[0]], [1], [1.0], TypeError, "gallery_labels has dtype float64, expected integers"),
        ([[0]], ["a"], [1], TypeError, r"query_labels has dtype <U1, expected integers; np.unique\(labels, return_inv"),
        ([[1]], [1], [1], ValueError, "neighbors go from 1 to 1, expected -1 to 0"),
        ([[0.0]], [1], [1], TypeError, "neighbors has dtype float64, expected integers"),
    ],
)
def test_bad_input_is_named(neighbors, query_labels, gallery_labels, error, message):
    with pytest.raises(error, match=message):
        relevance(np.array(neighbors), np.array(query_labels), np.array(gallery_labels))
