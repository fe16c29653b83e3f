"""Objectives written as expressions: what they mean, and what is no expression."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmetric.run.errors import ConfigError
from jaxmetric.run.terms import Term, format_terms, loss_names, parse_terms


def test_an_expression_is_a_sum_of_terms():
    terms = parse_terms(
        "20*quadruplet(margin=0.3, label_weights=(3,1,3)) + 2.5*soft_triple(on='identity', centers_per_class=3) + nca"
    )
    assert terms == (
        Term("quadruplet", weight=20.0, margin=0.3, label_weights=(3, 1, 3)),
        Term("soft_triple", weight=2.5, on="identity", centers_per_class=3),
        Term("nca"),
    )
    assert [term.weight for term in terms] == [20, 2.5, 1]
    assert terms[1].on == ("identity",)


def test_centers_have_the_papers_number_by_default():
    assert Term("soft_triple").centers_per_class == 10
    assert Term("center").centers_per_class == 0


@given(
    st.lists(
        st.builds(
            lambda weight, name, margin, on: Term(name, weight=weight, margin=margin, on=on),
            st.floats(1e-3, 1e3),
            st.sampled_from(["triplet", "quadruplet", "normalized_softmax"]),
            st.floats(-2, 2),
            st.sampled_from([(), "age", "it's"]),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_formatted_terms_parse_to_the_same_terms(terms):
    assert parse_terms(format_terms(terms)) == tuple(terms)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("__import__('os')", "expected options by name"),
        ("__import__('os').system('true')", "expected a number times the name of a loss"),
        (
            "triplet(margin=__import__('os'))",
            "margin is \"__import__('os')\", expected a number",
        ),
        ("(lambda: 0)()", "expected a number times the name of a loss"),
        ("", "is no expression"),
        ("triplet(", "is no expression"),
        ("(" * 500, "is no expression"),
        ("1 + 2", "expected a number times the name of a loss"),
        ("triplet - center", "expected a number times the name of a loss"),
        ("triplet*2", "expected a number times the name of a loss"),
        ("2*3*triplet", "expected a number times the name of a loss"),
        ("triplet(0.2)", "expected options by name, such as triplet(margin=0.3)"),
        ("triplet(**{})", "expected options by name"),
        ("tripet", "no loss is called 'tripet'; did you mean triplet?; `jaxmetric losses` lists them"),
        ("triplet_loss", "no loss is called 'triplet_loss'; leave out _loss: triplet"),
        ("triplet(margn=1)", "triplet has no option 'margn'; did you mean margin?"),
        ("center(margin=1)", "center has no option 'margin'"),
        ("triplet(weight=2)", "write the weight before the loss: 2*triplet"),
        ("0*triplet", "the weight of triplet is 0, expected a number above 0"),
        ("-1*triplet", "the weight of triplet is -1, expected a number above 0"),
        ("1e999*triplet", "expected a number times the name of a loss"),
        (f"1{400 * '0'}*triplet", "expected a number above 0"),
        ("{[]: 1}*triplet", "expected a number times the name of a loss"),
        ("'a'*triplet(weight=2)", "write the weight before the loss: 2*triplet"),
        *(
            (
                f"quadruplet(label_weights={literal})",
                f"label_weights is '{literal}', expected a number, a word in quotes",
            )
            for literal in ("{3, 1, 2}", "{3: 1}", "1 + 2j", "1e309", "...", "(1, {2})")
        ),
        ("triplet(margin=b'x')", "expected a number, a word in quotes or a tuple"),
        ("triplet(margin=1, margin=2)", "margin twice"),
        ("triplet(margin=1, margin=1, margin=2)", "margin twice"),
        *((f"triplet({field}=1)", f"triplet has no option {field!r}") for field in ("name", "self", "options")),
        ("sphereface(learn='margin')", "learn names 'margin', which is not a number that it can learn"),
        ("margin(learn='nu')", "learn names 'nu', which is not a number that it can learn"),
        ("ranked_list(learn='neg_weight')", "learn names 'neg_weight', which is not a number that it can learn"),
        ("histogram(learn='num_bins')", "learn names 'num_bins', which is not a number that it can learn"),
        (
            "triplet(pairs='distance_weighted(dim=4)')",
            "distance_weighted has no option 'dim'; there are cutoff, nonzero",
        ),
        ("triplet(pairs='angular(references=1)')", "angular has no option 'references'; "),
        ("triplet(pairs=\"angular(distance='cosine')\")", "angular has no option 'distance'; "),
        (
            "triplet(pairs='batch_hard(distance=3)')",
            "distance of batch_hard is 3, expected one of 'squared_euclidean', ",
        ),
        ("'2'*triplet", "the weight of triplet is '2', expected a number above 0"),
        ("True*triplet", "the weight of triplet is True, expected a number above 0"),
        ("triplet(on=('a', 'b'))", "triplet: on names 2 columns, but this loss takes one"),
        ("quadruplet(on=('a', 'a'))", "which names one twice"),
        ("quadruplet(on=3)", "quadruplet: on is 3, expected a name or a tuple of names"),
        ("triplet(labels=3)", "triplet: labels is filled in by the objective; leave it out"),
        ("triplet(reduction='none')", "triplet: reduction is 'none', expected 'mean', 'mean_active' or 'sum'"),
        ("sampled_quadruplet", "sampled_quadruplet needs num_quadruplets"),
        ("contrastive(pairs='batch_hrd')", "no miner has this name; did you mean batch_hard?"),
        ("contrastive(pairs='batch_hard(x)')", "expected options by name"),
        (
            "contrastive(pairs='multi_similarity(epsilo=1)')",
            "multi_similarity has no option 'epsilo'; did you mean eps",
        ),
        ("contrastive(pairs=3)", "contrastive: pairs is 3, expected the name of a miner in quotes"),
        ("center(pairs='batch_hard')", "center has no option 'pairs': it does not compare pairs"),
        ("center(memory=9)", "center has no option 'memory': it takes no references"),
        ("triplet(memory=-1)", "triplet: memory is -1, expected a whole number of embeddings"),
        ("siglip(learn='scal')", "learn names 'scal', which is not a number that it can learn; did you mean scale?"),
        ("siglip(learn='similarity')", "learn names 'similarity', which is not a number that it can learn"),
        ("soft_triple(centers_per_class=0)", "centers_per_class is 0, expected a whole number above 0"),
        ("center(centers_per_class=3)", "center has no option 'centers_per_class'"),
    ],
)
def test_an_invalid_objective_is_a_one_line_error(expression, message):
    with pytest.raises(ConfigError) as error:
        parse_terms(expression)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


@given(st.recursive(PLAIN, lambda inner: st.lists(inner).map(tuple), max_leaves=5))
def test_any_plain_value_of_an_option_is_written_and_read(value):
    term = Term("triplet", margin=value)
    assert parse_terms(str(term)) == (term,)


@pytest.mark.parametrize(
    ("value", "same"),
    [
        (np.float64(0.3), 0.3),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.array([1, 2]), (1, 2)),
        (jnp.float32(0.5), 0.5),
        ([3, 1.5], (3, 1.5)),
        ([[1], (2,)], ((1,), (2,))),
    ],
)
def test_numbers_and_lists_of_python_and_numpy_make_equal_terms(value, same):
    term = Term("quadruplet", label_weights=value)
    assert term == Term("quadruplet", label_weights=same)
    assert parse_terms(str(term)) == (term,)


def test_every_argument_of_a_term_may_come_from_numpy_or_a_list():
    term = Term("siglip", weight=np.float32(2), on=["side"], memory=np.int64(3), learn=["scale"])
    assert term == Term("siglip", weight=2, on="side", memory=3, learn="scale")


@pytest.mark.parametrize("value", [float("inf"), float("nan"), {1}, b"x", lambda: 0, 1j, object()])
def test_a_value_that_no_expression_can_hold_is_refused(value):
    for option in ("margin", "on", "learn", "memory", "weight", "pairs"):
        with pytest.raises(ConfigError, match=rf"^(triplet: {option}|the weight of triplet) is .*, expected a"):
            Term("triplet", **{option: value})


@pytest.mark.parametrize("text", ["2*triplet(margin=0.5)", "soft_triple(centers_per_class=3, tau=0.1)", "center"])
def test_a_term_is_replaced_as_a_dataclass(text):
    (term,) = parse_terms(text)
    changed = dataclasses.replace(term, weight=7.0)
    assert changed == parse_terms(f"7*{text.removeprefix('2*')}")[0]
    assert dataclasses.replace(changed, weight=term.weight) == term


@given(st.text())
def test_any_text_is_parsed_or_refused(text):
    try:
        parse_terms(text)
    except ConfigError as error:
        assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize("name", loss_names())
def test_every_exported_loss_has_a_name(name):
    needs = {"sampled_quadruplet": {"num_quadruplets": 9}, "anchored_quadruplet": {"num_anchors": 2}}
    term = Term(name, weight=0.5, **needs.get(name, {}))
    assert parse_terms(str(term)) == (term,)
