import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmetric.agreement import MAX_LEVELS, disagreement_levels, known_labels, label_agreement

PEOPLE = np.array([[7, 0, 20], [7, 0, 23], [4, 1, 23]])  # identity, gender, age


def test_counts_the_columns_on_which_two_examples_agree():
    agreement = label_agreement(PEOPLE)
    assert agreement.dtype == jnp.int32
    np.testing.assert_array_equal(agreement, [[3, 2, 0], [2, 3, 1], [0, 1, 3]])


def test_one_column_may_be_a_vector():
    labels = np.array([5, 7, 5])
    np.testing.assert_array_equal(label_agreement(labels), [[1, 0, 1], [0, 1, 0], [1, 0, 1]])
    np.testing.assert_array_equal(label_agreement(labels[:, None]), label_agreement(labels))


def test_a_missing_label_agrees_with_nothing():
    where = np.array([[True, True, False], [True, True, True], [True, False, True]])
    np.testing.assert_array_equal(label_agreement(PEOPLE, where=where), [[2, 2, 0], [2, 3, 1], [0, 1, 2]])
    np.testing.assert_array_equal(
        label_agreement(PEOPLE, where=np.array([True, False, True])), [[3, 0, 0], [0, 0, 0], [0, 0, 3]]
    )


def test_other_rows_are_the_second_axis():
    other = np.array([[7, 1, 23], [4, 1, 23]])
    np.testing.assert_array_equal(label_agreement(PEOPLE, other), [[1, 0], [2, 1], [2, 3]])
    np.testing.assert_array_equal(
        label_agreement(PEOPLE, other, where=np.array([False, True, True]), other_where=np.array([True, False])),
        [[0, 0], [2, 0], [2, 0]],
    )


def test_label_weights_multiply_the_columns():
    agreement = label_agreement(PEOPLE, label_weights=(4.0, 2.0, 0.5))
    assert agreement.dtype == jnp.float32
    np.testing.assert_array_equal(agreement, [[6.5, 6, 0], [6, 6.5, 0.5], [0, 0.5, 6.5]])


def test_ordinal_columns_subtract_their_distance():
    # 1 - |20 - 23| = -2; clipped at a largest distance of 2: -1
    np.testing.assert_array_equal(label_agreement(PEOPLE, ordinal=(None, 0, True))[0], [3, 0, -2])
    np.testing.assert_array_equal(label_agreement(PEOPLE, ordinal=(None, False, 2))[0], [3, 1, -1])
    np.testing.assert_array_equal(
        label_agreement(PEOPLE.astype(np.uint8), ordinal=(0, 0, True)), label_agreement(PEOPLE, ordinal=(0, 0, True))
    )


def pair_bounds(a, b, known_a, known_b, label_weights, ordinal):
    """The least and the largest disagreement which two rows of labels can have, by the definition."""
    least = most = 0.0
    for x, y, known_x, known_y, weight, largest in zip(a, b, known_a, known_b, label_weights, ordinal, strict=True):
        if known_x and known_y:
            difference = min(abs(int(x) - int(y)), largest) if largest else int(x != y)
            least, most = least + weight * difference, most + weight * difference
        else:
            most += weight * (largest or 1)
    return least, most


@pytest.mark.parametrize(
    ("label_weights", "ordinal"),
    [
        (None, None),
        ((2, 2, 2), None),
        ((3.0, 1.0, 0.5), None),
        ((0.1, 0.2, 0.3), None),  # 0.1 + 0.2 and 0.3 are one level
        (None, (0, 3, None)),
        ((5.0, 0.7, 1.1), (0, 3, 2)),
    ],
)
def test_levels_number_the_distinct_disagreements(label_weights, ordinal):
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 4, (2, 300, 3))
    first_known, second_known = rng.random((2, 300, 3)) < 0.8
    levels = disagreement_levels(
        first,
        second,
        first_known=first_known,
        second_known=second_known,
        label_weights=label_weights,
        ordinal=ordinal,
    )
    rules = label_weights or (1, 1, 1), ordinal or (0, 0, 0)
    bounds = np.array(
        [pair_bounds(*pair, *rules) for pair in zip(first, second, first_known, second_known, strict=True)]
    )
    steps = [weight * np.arange((largest or 1) + 1) for weight, largest in zip(*rules, strict=True)]
    values = np.unique(np.round(np.add.outer(np.add.outer(steps[0], steps[1]), steps[2]), 6))
    assert levels.num_levels == len(values)
    np.testing.assert_array_equal(levels.lower, np.searchsorted(values, bounds[:, 0] - 1e-5))
    np.testing.assert_array_equal(levels.upper, np.searchsorted(values, bounds[:, 1] - 1e-5))


def test_agreement_any_has_two_levels():
    first, second = np.array([[1, 2], [1, 2], [1, 2], [1, 2]]), np.array([[1, 2], [1, 3], [5, 2], [1, 9]])
    known = np.array([[True, True], [True, True], [True, False], [True, False]])
    levels = disagreement_levels(
        first, second, first_known=known, second_known=np.ones((4, 2), bool), agreement="any", label_weights=(1, 9)
    )
    # The unknown label of the last row may agree or not; that of the third cannot undo a known disagreement.
    assert (levels.lower.tolist(), levels.upper.tolist(), levels.num_levels) == ([0, 1, 1, 0], [0, 1, 1, 1], 2)


def test_known_labels_are_a_matrix_with_a_mask_for_each_entry():
    labels, known = known_labels(np.array([3, 1]), np.array([True, False]))
    assert (labels.tolist(), known.tolist()) == ([[3], [1]], [[True], [False]])
    _, known = known_labels(PEOPLE, np.array([True, False, True]))
    assert known.tolist() == [[True] * 3, [False] * 3, [True] * 3]


def test_works_under_jit():
    np.testing.assert_array_equal(jax.jit(label_agreement)(PEOPLE), label_agreement(PEOPLE))


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"labels": PEOPLE / 2}, TypeError, "labels has dtype float64, expected integers"),
        ({"labels": PEOPLE > 5}, TypeError, "labels has dtype bool, expected integers"),
        ({"labels": np.ones((3, 0), int)}, ValueError, r"labels has shape \(3, 0\), expected .* T >= 1"),
        ({"labels": np.ones((3, 2, 2), int)}, ValueError, r"labels has shape \(3, 2, 2\), expected"),
        ({"labels": 5}, ValueError, r"labels has shape \(\), expected"),
        ({"other": PEOPLE[:, :2]}, ValueError, "other has 2 label columns, labels has 3"),
        ({"other": PEOPLE / 2}, TypeError, "other has dtype float64, expected integers"),
        ({"where": np.ones(3)}, TypeError, "where has dtype float64, expected bool"),
        ({"where": np.ones(4, bool)}, ValueError, r"where has shape \(4,\), expected \(3,\) or \(3, 3\) as labels"),
        ({"other_where": np.ones(3, bool)}, ValueError, "other_where marks .* not given"),
        (
            {"other": PEOPLE, "other_where": np.ones(2, bool)},
            ValueError,
            r"other_where has shape \(2,\), expected \(3,\) or \(3, 3\) as other",
        ),
        ({"other": PEOPLE, "other_where": np.ones(3)}, TypeError, "other_where has dtype float64, expected bool"),
        ({"label_weights": (1, 2)}, ValueError, "label_weights has 2 entries, expected one for each of 3 columns"),
        ({"label_weights": (1, 0, 2)}, ValueError, r"label_weights is \(1, 0, 2\), expected finite numbers above 0"),
        ({"label_weights": (1, np.nan, 2)}, ValueError, "label_weights is .*nan.*, expected finite numbers above 0"),
        ({"label_weights": jnp.ones(3)}, TypeError, "label_weights is .*, expected static numbers"),
        ({"label_weights": ("a", 1, 2)}, TypeError, "label_weights is .*, expected static numbers"),
        ({"ordinal": (0, 1)}, ValueError, "ordinal has 2 entries, expected one for each of 3 columns"),
        ({"ordinal": (0, 1.5, 0)}, ValueError, r"ordinal is \(0, 1.5, 0\), expected the largest"),
        ({"ordinal": (0, -1, 0)}, ValueError, r"ordinal is \(0, -1, 0\), expected the largest"),
        ({"ordinal": (0, np.inf, 0)}, ValueError, r"ordinal is \(0, inf, 0\), expected the largest"),
        ({"ordinal": (0, np.nan, 0)}, ValueError, r"ordinal is \(0, nan, 0\), expected the largest"),
        ({"ordinal": jnp.ones(3)}, TypeError, "ordinal is .*, expected static numbers"),
    ],
)
def test_bad_input_is_named(kwargs, error, message):
    with pytest.raises(error, match=f"^{message}"):
        label_agreement(**{"labels": PEOPLE, **kwargs})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"ordinal": (0, 0, True)},
            r"ordinal\[2\] is True, expected the largest \|a - b\| of the column as an integer",
        ),
        ({"ordinal": (10**9, 0, 0)}, f"ordinal has the entry 1000000000, expected a largest .* below {MAX_LEVELS}"),
        (
            {"ordinal": (99, 99, 0), "label_weights": (1, 1.0123, 1)},
            f"label_weights and ordinal make more than {MAX_LEVELS} levels of disagreement",
        ),
        ({"agreement": "all"}, "agreement is 'all', expected 'count' or 'any'"),
    ],
)
def test_levels_that_are_unknown_before_tracing_are_refused(kwargs, message):
    known = np.ones(PEOPLE.shape, bool)
    with pytest.raises(ValueError, match=message):
        disagreement_levels(PEOPLE, PEOPLE, first_known=known, second_known=known, **kwargs)
