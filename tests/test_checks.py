"""What every function that takes labels or other arrays owes its users before it computes anything."""

import inspect
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loss_rows import ONE_OF_EACH_ENGINE, ROWS, example
from option_kinds import CALLS, every_option

import jaxmetric
from jaxmetric import _checks as checks
from jaxmetric import memory, mining, views
from jaxmetric.references import References

KEY = jax.random.key(0)
EMBEDDINGS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
LABELS = np.arange(4) % 2
MEMORY = memory.init(4, 3)
LOSSES = {row.loss: name for name, row in reversed(ROWS.items())}.values()  # one row of each

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


POSITIVES, NEGATIVES = mining.label_pairs(LABELS)
ARRAYS = {
    "key": KEY,
    "embeddings": EMBEDDINGS,
    "distances": jaxmetric.pairwise_euclidean(EMBEDDINGS),
    "positives": POSITIVES,
    "negatives": NEGATIVES,
    "labels": LABELS,
    "x": EMBEDDINGS,
    "embeddings4": EMBEDDINGS,
    "labels4": LABELS,
    "centers": np.ones((2, 2, 3), np.float32),
    "loss": jaxmetric.supcon_loss,
}
SIZES = {"dim": 3, "p": 1, "size": 4, "num_classes": 8, "num_sampled": 6, "centers_per_class": 2, "batch": 3}
SIZES |= {"num_views": 2, "num_quadruplets": 8, "num_anchors": 2}
FUNCTIONS = {
    function.__name__: function
    for function in (
        *(f for f in vars(mining).values() if inspect.isfunction(f) and f.__module__ == mining.__name__),
        *(jaxmetric.lp_regularizer, jaxmetric.pairwise_lp, jaxmetric.label_agreement, jaxmetric.quadruplet_hinge),
        *(jaxmetric.sampled_quadruplet_loss, jaxmetric.anchored_quadruplet_loss),
        *(jaxmetric.sample_classes, jaxmetric.init_centers, jaxmetric.effective_centers),
        *(memory.init, views.view_labels, views.self_supervised),
    )
    if not function.__name__.startswith("_")
}
OF_ARRAYS = {*ARRAYS, "other", "other_where", "references", "where", "weights", "pairs", "triplets", "y"}
NONSENSE = {
    "a set": {3, 1},
    "an object": object(),
    "unequal rows": [[1], [2, 3]],
    "a key": KEY,
    "text": np.array("x"),
    "an array of objects": np.array(None),
    "a complex number": np.complex64(2),
    "a list": [np.ones(2)],
}


def assert_refuses_nonsense(call, option):
    for value in NONSENSE.values():
        with pytest.raises((TypeError, ValueError), match=rf"^{option}(\[\d\])? (is|has) .*expected") as raised:
            call(**{option: value})
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_no_option_is_named_in_one_line(name):
    arguments = inspect.signature(FUNCTIONS[name]).parameters
    given = {key: value for key, value in (ARRAYS | SIZES).items() if key in arguments}
    for option in arguments.keys() - OF_ARRAYS:
        assert_refuses_nonsense(partial(lambda name, **more: FUNCTIONS[name](**more), name, **given), option)


@pytest.mark.parametrize("name", ROWS)
def test_what_is_no_option_of_a_loss_is_named_in_one_line(name):
    call = partial(ROWS[name].call, *example(name))
    keywords = {p.name for p in inspect.signature(ROWS[name].loss).parameters.values() if p.kind is p.KEYWORD_ONLY}
    for option in keywords - OF_ARRAYS - SIZES.keys() - {"class_weights"}:
        assert_refuses_nonsense(call, option)
    for value in ("no", 1, np.True_):
        with pytest.raises(TypeError, match=r"^has_aux is .*, expected True or False, static"):
            call(has_aux=value)


def refusal(name, option, number):
    """The message of the error that a number raises; "" if the loss takes it."""
    try:
        jax.eval_shape(partial(ROWS[name].call, *example(name), **{option: number}))
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", LOSSES)
def test_integers_beyond_32_bits_are_taken_as_floats_or_refused_by_name(name):
    keywords = inspect.signature(ROWS[name].loss).parameters.values()
    taken = {}
    for option in (p.name for p in keywords if p.kind is p.KEYWORD_ONLY and isinstance(p.default, float)):
        refusals = [refusal(name, option, number) for number in (10**10, np.int64(10**10), np.array(10**10))]
        if refusals == [""] * 3:
            taken[option] = 10**10
        assert option in taken or all(
            re.match(f"{option} is (10000000000|1e.10), expected (a finite number|radians)", each) for each in refusals
        )
    if taken and name in ONE_OF_EACH_ENGINE:
        floats = {option: float(number) for option, number in taken.items()}
        value, expected = (ROWS[name].call(*example(name), **options) for options in (taken, floats))
        np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize("number", [10**10, np.int64(10**10)])
def test_miners_take_integers_beyond_32_bits(number):
    masks = POSITIVES, NEGATIVES
    for miner, option in (
        (mining.triplet_margin, "margin"),
        (mining.multi_similarity, "epsilon"),
        (mining.pair_margin, "neg_margin"),
    ):
        kept, expected = (miner(ARRAYS["distances"], *masks, **{option: each}) for each in (number, 1e10))
        np.testing.assert_array_equal(kept, expected)
    kept = mining.distance_weighted(KEY, ARRAYS["distances"], *masks, dim=number)
    assert kept.shape == POSITIVES.shape


def test_weights_and_boundaries_beyond_32_bits_keep_their_value():
    large = np.array([2**33, 1, 2**33, 1])
    for integers in (large, large.tolist()):
        loss = jaxmetric.contrastive_loss(EMBEDDINGS, LABELS, weights=integers)
        np.testing.assert_array_equal(loss, jaxmetric.contrastive_loss(EMBEDDINGS, LABELS, weights=np.float64(large)))
        loss = jaxmetric.margin_loss(EMBEDDINGS, LABELS, integers[:2])
        np.testing.assert_array_equal(loss, jaxmetric.margin_loss(EMBEDDINGS, LABELS, np.float64(large[:2])))


@pytest.mark.parametrize("power", [1, 2, 2.0, np.int64(1), np.array(2), np.float32(1)])
def test_a_power_may_be_any_number_that_is_1_or_2(power):
    loss = jaxmetric.contrastive_loss(EMBEDDINGS, LABELS, power=power)
    np.testing.assert_array_equal(loss, jaxmetric.contrastive_loss(EMBEDDINGS, LABELS, power=int(power)))


def test_numbers_may_be_arrays_made_outside_of_jit():
    power, tau = jnp.asarray(2), jnp.float32(0.2)

    def loss(embeddings):
        squared = jaxmetric.contrastive_loss(embeddings, LABELS, power=power)
        return squared + jaxmetric.soft_triple_loss(embeddings, LABELS, ARRAYS["centers"], tau=tau)

    np.testing.assert_allclose(jax.jit(loss)(EMBEDDINGS), loss(EMBEDDINGS), rtol=1e-6)


@pytest.mark.parametrize("option", ["label_weights", "ordinal"])
def test_options_of_columns_are_sequences_of_numbers(option):
    columns = np.stack([LABELS] * 2, axis=1)
    for wrong in (3, {3, 1}, {3: 1, 1: 3}, "31", (3, None, 1)[:1] * 2 + ("x",), iter((3, 1))):
        for call in (jaxmetric.label_agreement, partial(jaxmetric.quadruplet_loss, EMBEDDINGS)):
            with pytest.raises((TypeError, ValueError), match=f"^{option} (is|has) .*expected"):
                call(columns, **{option: wrong})
    for right in ((3, 1), [3, 1], np.array([3, 1]), (np.int64(3), np.float32(1))):
        agreement = jaxmetric.label_agreement(columns, **{option: right})
        np.testing.assert_array_equal(agreement, jaxmetric.label_agreement(columns, **{option: (3, 1)}))


def test_cutoffs_of_recall_may_be_integers_of_numpy():
    call = partial(jaxmetric.recall_at_k_loss, EMBEDDINGS, LABELS)
    for ks in ((np.int64(1), 2), [1, 2], np.array([1, 2])):
        np.testing.assert_array_equal(call(ks=ks), call(ks=(1, 2)))


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_distances_of_integers_beyond_32_bits_are_those_of_the_floats(dtype):
    large = np.array([[2**32], [1], [2**33]], dtype)
    for function in (
        jaxmetric.pairwise_euclidean,
        jaxmetric.pairwise_squared_euclidean,
        jaxmetric.pairwise_dot_product,
    ):
        np.testing.assert_array_equal(function(large), function(large.astype(np.float32)))


# None of them is a value of any option, or else the function takes it.
ODD_VALUES = [
    *("no", True, 3, 2.5, None, -1, 10**400, float("nan"), object(), {3, 1}, {3: 1}, (1, "x"), [[1], [1, 2]], range(3)),
    *(np.array(2), np.array(True), np.array("x"), np.array(None), np.bool_(True), np.complex64(1), np.ones((30, 30))),
    *(jnp.array(2), jnp.array(True), jnp.ones(3), jax.random.key(0)),
]


@pytest.mark.parametrize(("name", "option"), every_option())
def test_an_odd_value_of_an_option_is_taken_or_named_in_one_line(name, option):
    for value in ODD_VALUES:
        try:
            jax.eval_shape(lambda: CALLS[name](**{option: value}))  # noqa: B023
        except (TypeError, ValueError) as error:
            message = f"{type(error).__name__}: {error}"
            if "\n" in message or not re.search(rf"\b{option}\b", message):
                raise AssertionError(f"{option}={value!r}: {message}") from error
        except Exception as error:
            raise AssertionError(f"{option}={value!r}") from error
