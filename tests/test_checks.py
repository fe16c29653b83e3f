"""What every function that takes labels or other arrays owes its users before it computes anything."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxmetric
from jaxmetric import _checks as checks
from jaxmetric import memory, mining
from jaxmetric.references import References

KEY = jax.random.key(0)
EMBEDDINGS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
LABELS = np.arange(4) % 2
MEMORY = memory.init(4, 3)

# Outside the losses, every function that takes integers: (name of the argument, function of it).
TAKE_INTEGERS = {
    "label_pairs": ("labels", mining.label_pairs),
    "label_pairs, references": ("references.labels", lambda x: mining.label_pairs(LABELS, References(EMBEDDINGS, x))),
    "label_pairs, own": ("references.own", lambda x: mining.label_pairs(LABELS, References(EMBEDDINGS, LABELS, own=x))),
    "label_agreement": ("labels", jaxmetric.label_agreement),
    "label_agreement, other": ("other", lambda x: jaxmetric.label_agreement(LABELS, x)),
    "quadruplet_hinge": ("labels4", lambda x: jaxmetric.quadruplet_hinge(EMBEDDINGS, x)),
    "memory.update": ("labels", lambda x: memory.update(MEMORY, EMBEDDINGS, x)),
    "memory.as_references": ("labels", lambda x: memory.as_references(MEMORY, EMBEDDINGS, x)),
    "sample_classes": ("labels", lambda x: jaxmetric.sample_classes(KEY, x, 8, 6)),
    "triplets": (
        "triplets",
        lambda x: jaxmetric.triplet_loss(
            EMBEDDINGS, None, triplets=[[i] * 3 for i in x] if isinstance(x, list) else np.stack([x] * 3, 1)
        ),
    ),
}
BEYOND = st.one_of(st.integers(2**31, 2**64 - 1), st.integers(-(2**63), -(2**31) - 1))


@pytest.mark.parametrize("name", TAKE_INTEGERS)
@given(number=BEYOND, place=st.integers(0, 3), as_list=st.booleans())
def test_integers_that_would_be_cut_are_refused_by_name(name, number, place, as_list):
    argument, function = TAKE_INTEGERS[name]
    values = [0, 1, 0, 1]
    values[place] = number
    array = values if as_list else np.array(values, np.uint64 if number > 0 else np.int64)
    with pytest.raises(ValueError, match=f"^{argument} has {number}, expected integers that fit int32") as raised:
        function(array)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", TAKE_INTEGERS)
@pytest.mark.parametrize(
    ("value", "came"),
    [
        (np.array(list("abcd")), "has dtype <U1, expected integers"),
        (np.array([0, 1, 0, 1], object), "has dtype object, expected integers"),
        (np.ones(4), "has dtype float64, expected integers"),
        (np.ones(4, bool), "has dtype bool, expected integers"),
        ([[0, 1], [1], [0], [1]], "is a list of unequal rows, expected integers"),
    ],
)
def test_values_that_are_not_integer_arrays_are_named_in_one_line(name, value, came):
    argument, function = TAKE_INTEGERS[name]
    with pytest.raises(TypeError, match=f"^{argument} {came}") as raised:
        function(value)
    assert "\n" not in str(raised.value)
    of_rows = argument in ("references.own", "triplets")  # which no renumbering of classes would mend
    assert ("number the classes from 0" in str(raised.value)) == (not of_rows)


@given(
    values=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=5),
    dtype=st.sampled_from([np.int64, np.int32, list]),
)
def test_integers_that_fit_are_accepted(values, dtype):
    given = values if dtype is list else np.array(values, dtype)
    assert checks.check_integers("labels", given).tolist() == values


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.uint32, np.int64])
def test_labels_of_any_integer_dtype_are_converted_to_one(dtype):
    assert checks.check_integers("labels", np.zeros(3, dtype)).dtype == np.int32
    assert jax.jit(lambda x: checks.check_integers("labels", x))(np.zeros(3, dtype)).dtype == np.int32
    with jax.enable_x64(True):
        assert checks.check_integers("labels", np.full(3, 100, dtype)).dtype == np.int64


@given(a=st.integers(-(2**31), 2**31 - 1), b=st.integers(-(2**31), 2**31 - 1), largest=st.sampled_from([1, 100, 4000]))
def test_an_ordinal_difference_never_overflows(a, b, largest):
    agreement = jaxmetric.label_agreement(np.array([a]), np.array([b]), ordinal=(largest,))
    assert int(agreement[0, 0]) == 1 - min(abs(a - b), largest)


def test_values_that_are_not_arrays_are_named():
    for value in (None, "abc", {"a": 1}, object()):
        with pytest.raises(TypeError, match=r"^embeddings (is|has) .*, expected a floating-point dtype") as raised:
            checks.check_embeddings(value)
        assert "\n" not in str(raised.value)


def test_lists_that_hold_traced_values_are_arrays():
    doubled = jax.jit(lambda x: checks.check_embeddings([[x, 2 * x]]))(jnp.float32(3))
    assert doubled.tolist() == [[3, 6]]


def test_a_masked_array_is_refused_because_its_mask_would_be_lost():
    with pytest.raises(TypeError, match=r"labels is a masked array, expected integers.* which of them are valid"):
        jaxmetric.supcon_loss(EMBEDDINGS, np.ma.array(LABELS, mask=LABELS > 0))


def test_keys_are_refused_as_labels():
    with pytest.raises(TypeError, match="labels has dtype key<fry>, expected integers"):
        jaxmetric.supcon_loss(EMBEDDINGS, jax.random.split(KEY, 4))


@pytest.mark.parametrize("weight", [1e-50, np.float64(1e-60)])
def test_weights_that_would_become_0_are_named(weight):
    weights = np.array([1.0, weight, 1.0, 1.0])
    with pytest.raises(ValueError, match=r"weights has 1e-[56]0, which is 0 in float32, expected larger numbers"):
        jaxmetric.supcon_loss(EMBEDDINGS, LABELS, weights=weights)
    centers = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"class_weights has 1e-[56]0, which is 0 in float32"):
        jaxmetric.arcface_loss(EMBEDDINGS, LABELS, centers, class_weights=weights[:2])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1e-50, "temperature is 1e-50, which is 0 in float32, expected a finite number above 0"),
        (1e50, "temperature is 1e.50, which is inf in float32, expected a finite number above 0"),
        (10**400, "temperature is 10*, which is inf in float32, expected a finite number above 0"),
        (-0.1, "temperature is -0.1, expected a finite number above 0"),
    ],
)
def test_numbers_that_single_precision_cannot_hold_are_named(value, message):
    with pytest.raises(ValueError, match=message):
        jaxmetric.supcon_loss(EMBEDDINGS, LABELS, temperature=value)


def test_an_ordinal_range_may_be_any_integer():
    assert jaxmetric.label_agreement(np.array([3]), np.array([8]), ordinal=(2**40,)).tolist() == [[-4]]


@pytest.mark.parametrize("loss", [jaxmetric.supcon_loss, jaxmetric.triplet_loss, jaxmetric.contrastive_loss])
def test_contradictory_masks_give_nan_if_traced(loss):
    mask = ~np.eye(4, dtype=bool)
    assert np.isnan(jax.jit(lambda p, n: loss(EMBEDDINGS, None, pairs=(p, n)))(mask, mask))
    if loss is jaxmetric.contrastive_loss:
        shares = np.where(mask, np.float32(3), 0)
        assert np.isnan(jax.jit(lambda p, n: loss(EMBEDDINGS, None, pairs=(p, n)))(shares, -shares))
