from itertools import combinations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from jaxmetric.metrics import semantic_coherence, spearman


def random_set(seed, size=30, values=3, columns=3, missing=False):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(size, 4)), rng.integers(-1 if missing else 0, values, (size, columns))


def pairs_by_definition(embeddings, labels):
    pairs = list(combinations(range(len(embeddings)), 2))
    distances = np.array([((embeddings[i] - embeddings[j]) ** 2).sum() for i, j in pairs])
    return distances, np.array([(labels[i] == labels[j]).sum() for i, j in pairs])


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(-5, 5)), min_size=2, max_size=30))
def test_spearman_equals_scipy(pairs):
    x, y = np.array(pairs).T
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert spearman(x, y) is None
    else:
        assert spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-9)


def test_spearman_of_fewer_than_two_values_is_undefined():
    assert spearman(np.array([1.0]), np.array([2.0])) is None
    assert spearman(np.zeros(0), np.zeros(0)) is None


def test_coherence_equals_scipy_over_all_pairs():
    embeddings, labels = random_set(0)
    distances, agreement = pairs_by_definition(embeddings, labels)
    result = semantic_coherence(embeddings, labels)
    assert result["pairs"] == 30 * 29 // 2
    assert result["spearman"] == pytest.approx(scipy.stats.spearmanr(distances, 3 - agreement).statistic, abs=1e-6)
    for level, row in enumerate(result["by_agreement"]):
        some = distances[agreement == level]
        numbers = [some.mean(), some.std(), *np.quantile(some, [0.1, 0.5, 0.9])]
        assert (row["agreement"], row["pairs"]) == (level, len(some))
        np.testing.assert_allclose([row[name] for name in ("mean", "std", "p10", "p50", "p90")], numbers, rtol=1e-4)


def test_centroid_coherence_equals_scipy_over_distinct_label_rows():
    embeddings, labels = random_set(1, size=40, columns=2)
    rows = sorted(set(map(tuple, labels)))
    centroids = np.array([embeddings[(labels == row).all(axis=1)].mean(axis=0) for row in rows])
    distances, agreement = pairs_by_definition(centroids, np.array(rows))
    expected = scipy.stats.spearmanr(distances, -agreement).statistic
    assert semantic_coherence(embeddings, labels)["centroid_spearman"] == pytest.approx(expected, abs=1e-6)


def test_one_hot_embeddings_are_perfectly_coherent():
    # For concatenated one-hot labels, the squared distance of a pair is twice its disagreement.
    labels = np.array([[a, b, c] for a in range(3) for b in range(3) for c in range(2)])
    embeddings = np.concatenate([np.eye(3)[labels[:, t]] for t in range(3)], axis=1)
    result = semantic_coherence(embeddings, labels)
    assert result["spearman"] == pytest.approx(1)
    assert result["centroid_spearman"] == pytest.approx(1)
    assert [row["mean"] for row in result["by_agreement"]] == [6, 4, 2, None]
    assert semantic_coherence(-embeddings, labels)["spearman"] == pytest.approx(1)


def test_rows_with_a_missing_label_are_ignored():
    embeddings, labels = random_set(2, missing=True)
    complete = (labels >= 0).all(axis=1)
    assert 2 < complete.sum() < len(labels)
    assert semantic_coherence(embeddings, labels) == semantic_coherence(embeddings[complete], labels[complete])


def test_sampled_pairs_are_seeded_counted_and_close_to_the_exact_value():
    embeddings, labels = random_set(3, size=200)
    embeddings[:, 0] += labels[:, 0]
    exact = semantic_coherence(embeddings, labels)
    sampled = semantic_coherence(embeddings, labels, max_pairs=10_000, seed=1)
    assert sampled["pairs"] == 10_000 < exact["pairs"]
    assert sampled == semantic_coherence(embeddings, labels, max_pairs=10_000, seed=1)
    assert sampled != semantic_coherence(embeddings, labels, max_pairs=10_000, seed=2)
    # 10,000 pairs: a standard error of 0.01.
    assert sampled["spearman"] == pytest.approx(exact["spearman"], abs=0.04)
    shares = [[row["pairs"] / result["pairs"] for row in result["by_agreement"]] for result in (sampled, exact)]
    np.testing.assert_allclose(*shares, atol=0.02)


def test_sampled_pairs_are_never_a_row_with_itself():
    labels = np.arange(10)[:, None]
    result = semantic_coherence(labels.astype(float), labels, max_pairs=44)
    assert [row["pairs"] for row in result["by_agreement"]] == [44, 0]


@pytest.mark.parametrize("size", [0, 1, 2])
def test_too_few_rows_are_undefined_not_nan(size):
    result = semantic_coherence(np.zeros((size, 3)), np.zeros((size, 2), int))
    assert result["spearman"] is None
    assert result["centroid_spearman"] is None
    assert result["pairs"] == max(size - 1, 0)
    assert result["by_agreement"][0] == {"agreement": 0, "pairs": 0} | dict.fromkeys(
        ("mean", "std", "p10", "p50", "p90")
    )


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="embeddings has 1 rows that are NaN"):
        semantic_coherence(np.array([[np.nan], [0.0]]), np.zeros((2, 1), int))
    with pytest.raises(ValueError, match=r"labels has shape \(2,\), expected \(2, T\)"):
        semantic_coherence(np.zeros((2, 1)), np.zeros(2, int))
    with pytest.raises(ValueError, match="max_pairs is 0, expected at least 1"):
        semantic_coherence(np.zeros((2, 1)), np.zeros((2, 1), int), max_pairs=0)
