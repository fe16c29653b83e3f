"""Every loss as a term of an objective, and what the objective tells of how much each term found to compare."""

import dataclasses
import inspect
import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

import jaxmetric
from jaxmetric import mining
from jaxmetric.data import LabelColumn
from jaxmetric.losses._engine.types import declared_range, declared_shape
from jaxmetric.parallel import AXIS_NAME
from jaxmetric.run.errors import ConfigError
from jaxmetric.run.objective import objective
from jaxmetric.run.progress import watch_comparisons
from jaxmetric.run.terms import Term, find_loss, learnable, loss_names, miner_names, options_of, parse_terms

COLUMNS = (LabelColumn("person", tuple("abcd")), LabelColumn("side", ("left", "right")))
LABELS = np.array([[0, 0], [0, 1], [1, -1], [1, 0], [2, 1], [-1, 1], [3, 0], [3, 0]], np.int32)
DIM = 4


# The margins are far below all distances, so that every tuple is satisfied.
OTHERS = "soft_triple(centers_per_class=2) + normalized_softmax + triplet(margin=-1e6)"
SETUPS = [
    ("quadruplet(margin=-1e6)", {}, 1),
    ("quadruplet(margin=-1e6)", {}, 2),
    ("anchored_quadruplet(num_anchors=3, margin=-1e6)", {}, 2),
    ("sampled_quadruplet(num_quadruplets=9, margin=-1e6)", {}, 2),
    ("quadruplet(margin=-1e6)", {"shard_classes": True}, 2),
    ("quadruplet(margin=-1e6)", {"shard_classes": True, "sampled_classes": 4}, 2),
]
every_setup = pytest.mark.parametrize(("ordering", "options", "devices"), SETUPS, ids=str)


@cache
def program(ordering, options, devices):
    total = objective(f"{ordering} + {OTHERS}", COLUMNS, axis_name=AXIS_NAME, **dict(options))
    params, memory = total.init_params(jax.random.key(0), dim=DIM), total.init_memory(dim=DIM)
    mesh = Mesh(np.array(jax.devices()[:devices]), (AXIS_NAME,), axis_types=(AxisType.Auto,))
    specs = (P(), P(AXIS_NAME) if total.shard_axis else P(), P(), P(), P())
    run = jax.shard_map(total, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False)
    return jax.jit(partial(run, jax.random.key(1), params, memory))


def reported(ordering, options, devices, labels):
    """What the objective reports of a batch on so many devices."""
    embeddings = np.random.default_rng(0).normal(size=(len(labels), DIM)).astype(np.float32)
    _, (terms, _) = program(ordering, tuple(options.items()), devices)(embeddings, labels)
    return {name: float(value) for name, value in terms.items()}


def count_quadruplets(labels):
    """Ordered pairs of pairs of which the first certainly disagrees less."""

    def bounds(a, b):
        known = (a >= 0) & (b >= 0)
        differ = int((known & (a != b)).sum())
        return differ, differ + int((~known).sum())

    pairs = [bounds(a, b) for a, b in itertools.combinations(labels, 2)]
    return sum(near[1] < far[0] for near, far in itertools.permutations(pairs, 2))


def count_triplets(labels):
    identity = labels[labels[:, 0] >= 0, 0]
    return sum(
        a != p and identity[a] == identity[p] != identity[n]
        for a, p, n in itertools.product(range(len(identity)), repeat=3)
    )


@every_setup
def test_terms_report_the_amount_that_they_compared(ordering, options, devices):
    terms = reported(ordering, options, devices, LABELS)
    name, sampled = ordering.split("(")[0], "num_quadruplets" in ordering
    known = LABELS[(LABELS >= 0).all(axis=1)] if sampled else LABELS
    assert count_quadruplets(known) > 9
    assert {name: value for name, value in terms.items() if name.startswith("valid/")} == {
        f"valid/{name}": 9 if sampled else count_quadruplets(LABELS),  # each sample is one
        "valid/soft_triple": 7,
        "valid/normalized_softmax": 7,
        "valid/triplet": count_triplets(LABELS),
    }


@every_setup
def test_a_loss_of_0_with_nothing_to_compare_is_distinguished_from_a_satisfied_one(ordering, options, devices):
    name = ordering.split("(")[0]
    satisfied = reported(ordering, options, devices, LABELS)
    assert (satisfied[f"loss/{name}"], satisfied["loss/triplet"]) == (0, 0)
    assert min(satisfied[f"valid/{name}"], satisfied["valid/triplet"]) > 0
    # Where a column is unknown throughout, no pair certainly disagrees more than another.
    unknown = np.stack([LABELS[:, 0], np.full(len(LABELS), -1, np.int32)], axis=1)
    terms = reported(ordering, options, devices, unknown)
    assert (terms[f"loss/{name}"], terms[f"valid/{name}"]) == (0, 0)
    assert terms["valid/triplet"] == count_triplets(LABELS)
    # Where all images are of one person, no softmax is the worse for it, but no triplet is there.
    alone = reported(ordering, options, devices, np.zeros_like(LABELS))
    valid = [alone[f"valid/{name}"] for name in (name, "triplet", "normalized_softmax")]
    assert valid == [0, 0, len(LABELS)]


NEEDS = {"sampled_quadruplet": "(num_quadruplets=16)", "anchored_quadruplet": "(num_anchors=2)"}


@pytest.mark.parametrize("name", loss_names())
def test_every_exported_loss_is_a_term_whose_value_is_that_of_the_loss(name):
    """Compared with the loss of the complete examples, called by hand."""
    total = objective(f"3*{name}{NEEDS.get(name, '')}", COLUMNS)
    complete = LABELS[(LABELS >= 0).all(axis=1)]
    embeddings = np.random.default_rng(0).normal(size=(len(complete), DIM)).astype(np.float32)
    params, memory = total.init_params(jax.random.key(0), dim=DIM), total.init_memory(dim=DIM)
    run = jax.vmap(partial(total, jax.random.key(1)), in_axes=(None,) * 4, axis_size=1, axis_name=AXIS_NAME)
    loss, (terms, _) = run(params, memory, embeddings, complete)
    by_hand = getattr(jaxmetric, f"{name}_loss")
    arguments = inspect.signature(by_hand).parameters
    assert np.isfinite(loss[0])
    np.testing.assert_allclose(loss[0], 3 * terms[f"loss/{name}"][0], rtol=1e-6)
    if "key" in arguments or "other" in arguments:
        return
    labels = complete if declared_shape(by_hand, "labels") == "[B, T]" else complete[:, 0]
    vectors = [value for key, value in params.items() if key.startswith(f"{name}.")]
    np.testing.assert_allclose(terms[f"loss/{name}"][0], by_hand(embeddings, labels, *vectors), rtol=1e-5, atol=1e-6)


def step(total, params, memory, embeddings, labels):
    run = jax.vmap(partial(total, jax.random.key(1)), in_axes=(None,) * 4, axis_size=1, axis_name=AXIS_NAME)
    return jax.tree.map(lambda x: x[0], run(params, memory, embeddings, labels))


def test_a_memory_is_compared_with_the_next_batch():
    total = objective("contrastive(memory=8, on='person')", COLUMNS)
    memory = total.init_memory(dim=DIM)
    rng = np.random.default_rng(0)
    first, second = (rng.normal(size=(len(LABELS), DIM)).astype(np.float32) for _ in range(2))
    _, (alone, memory) = step(total, {}, memory, first, LABELS)
    _, (with_past, _) = step(total, {}, memory, second, LABELS)
    known = LABELS[:, 0] >= 0
    references = jaxmetric.References(
        np.concatenate([second, first[known]]),
        np.r_[LABELS[:, 0], LABELS[known, 0]],
        where=np.r_[known, np.ones(known.sum(), bool)],
        own=np.arange(len(LABELS)),
    )
    expected = jaxmetric.contrastive_loss(second, LABELS[:, 0], references=references, where=known)
    np.testing.assert_allclose(with_past["loss/contrastive"], expected, rtol=1e-5)
    assert alone["valid/contrastive"] == 7 * 6
    assert with_past["valid/contrastive"] == 7 * 6 + 7 * 7


def test_a_memory_and_a_histogram_are_kept_side_by_side():
    histogram = "dynamic_soft_margin(momentum=0.5, on='person')"
    total = objective(f"{histogram} + {histogram.replace('on=', 'memory=8, on=')}", COLUMNS)
    memory = total.init_memory(dim=DIM)
    embeddings = np.random.default_rng(0).normal(size=(len(LABELS), DIM)).astype(np.float32)
    # Against an empty memory the two terms see the same triplets.
    for _ in range(2):
        _, (terms, memory) = step(total, {}, {**memory, **empty_references(total, memory)}, embeddings, LABELS)
        np.testing.assert_allclose(terms["loss/dynamic_soft_margin_2"], terms["loss/dynamic_soft_margin"], rtol=1e-5)
    histograms = [np.asarray(memory[key]["histogram"]) for key in ("dynamic_soft_margin", "dynamic_soft_margin_2")]
    assert histograms[0].any()
    np.testing.assert_allclose(*histograms, atol=1e-4)  # an entry moves to the next bin by a rounding


def empty_references(total, memory):
    initial = total.init_memory(dim=DIM)
    return {
        key: {**each, "references": initial[key]["references"]} for key, each in memory.items() if "references" in each
    }


def test_a_miner_selects_the_pairs():
    total = objective("contrastive(pairs='batch_hard', on='person', distance='squared_euclidean')", COLUMNS)
    embeddings = np.random.default_rng(0).normal(size=(len(LABELS), DIM)).astype(np.float32)
    known = LABELS[:, 0] >= 0
    distances = ((embeddings[:, None] - embeddings[None]) ** 2).sum(-1)
    masks = mining.label_pairs(LABELS[:, 0], where=known)
    expected = jaxmetric.contrastive_loss(
        embeddings, LABELS[:, 0], distance="squared_euclidean", where=known, pairs=mining.batch_hard(distances, *masks)
    )
    _, (terms, _) = step(total, {}, {}, embeddings, LABELS)
    np.testing.assert_allclose(terms["loss/contrastive"], expected, rtol=1e-5)


@pytest.mark.parametrize("name", miner_names())
def test_every_miner_has_a_name(name):
    total = objective(f"contrastive(pairs='{name}', memory=5)", COLUMNS)
    embeddings = np.random.default_rng(0).normal(size=(len(LABELS), DIM)).astype(np.float32)
    loss, _ = step(total, {}, total.init_memory(dim=DIM), embeddings, LABELS)
    assert np.isfinite(loss)


@pytest.mark.parametrize("loss", ["triplet", "supcon"])
@pytest.mark.parametrize(("miner", "distance"), [("distance_weighted", "euclidean"), ("multi_similarity", "cosine")])
def test_a_miner_whose_formula_is_for_one_distance_uses_that_one_with_any_loss(loss, miner, distance):
    with_default, with_name = (
        objective(f"{loss}(pairs={f'{miner}{options}'!r})", COLUMNS) for options in ("", f"(distance={distance!r})")
    )
    embeddings = 0.3 * np.random.default_rng(0).normal(size=(len(LABELS), DIM)).astype(np.float32)
    values = [step(total, {}, {}, embeddings, LABELS)[1][0] for total in (with_default, with_name)]
    assert values[0] == values[1]


def test_a_label_that_is_no_class_is_not_another_class():
    classes = [np.array([0, 2]), np.array([0, 1])]
    total = objective("normalized_softmax(on='person')", COLUMNS, classes=classes)
    params = total.init_params(jax.random.key(0), dim=DIM)
    embeddings = np.random.default_rng(0).normal(size=(3, DIM)).astype(np.float32)

    @jax.jit
    def loss(person):
        labels = jnp.stack([jnp.array([0, 2, person]), jnp.zeros(3, int)], axis=1)
        return total(jax.random.key(1), params, {}, embeddings, labels)[0]

    assert np.isfinite([loss(-1), loss(0), loss(2)]).all()
    assert np.isnan([loss(1), loss(3), loss(7)]).all()
    assert loss(-1) not in (loss(0), loss(2))


def test_one_device_needs_no_mapped_axis():
    embeddings = np.random.default_rng(0).normal(size=(len(LABELS), DIM)).astype(np.float32)
    for name in loss_names():
        needs = {"sampled_quadruplet": "(num_quadruplets=9)", "anchored_quadruplet": "(num_anchors=3)"}
        total = objective(name + needs.get(name, ""), COLUMNS)
        params = total.init_params(jax.random.key(0), dim=DIM)
        shapes = jax.eval_shape(total, jax.random.key(1), params, total.init_memory(dim=DIM), embeddings, LABELS)
        assert shapes[0].shape == ()


def test_a_term_alone_is_an_objective():
    assert objective(Term("triplet", margin=0.3), COLUMNS).terms == objective("triplet(margin=0.3)", COLUMNS).terms


def test_numbers_that_are_learned_are_parameters_with_a_gradient():
    total = objective("siglip(scale=5.0, learn=('scale', 'bias'))", COLUMNS)
    params = total.init_params(jax.random.key(0), dim=DIM)
    assert params.keys() == {"siglip.scale", "siglip.bias"}
    np.testing.assert_allclose([params["siglip.scale"], params["siglip.bias"]], [np.log(5), -10], rtol=1e-6)
    embeddings = np.random.default_rng(0).normal(size=(len(LABELS), DIM)).astype(np.float32)
    gradients = jax.grad(lambda params: step(total, params, {}, embeddings, LABELS)[0])(params)
    assert all(np.abs(gradient) > 0 for gradient in gradients.values())
    known = LABELS[:, 0] >= 0
    expected = jaxmetric.siglip_loss(embeddings, LABELS[:, 0], scale=5.0, bias=-10.0, where=known)
    alone = objective("siglip(scale=5.0, learn=('scale', 'bias'), on='person')", COLUMNS)
    np.testing.assert_allclose(step(alone, params, {}, embeddings, LABELS)[0], expected, rtol=1e-5)


@pytest.mark.parametrize("name", loss_names())
def test_the_declared_range_of_a_number_is_the_one_that_the_loss_checks(name):
    needs = {"sampled_quadruplet": "num_quadruplets=9", "anchored_quadruplet": "num_anchors=3"}
    embeddings = jax.ShapeDtypeStruct((len(LABELS), DIM), np.float32)

    def is_accepted(option, value):
        (term,) = parse_terms(f"{name}({needs.get(name, '')})")
        term = dataclasses.replace(term, options={**dict(term.options), option: value}.items())
        total = objective(term, COLUMNS)
        params = jax.eval_shape(lambda: total.init_params(jax.random.key(0), dim=DIM))
        try:
            jax.eval_shape(total, jax.random.key(1), params, total.init_memory(dim=DIM), embeddings, LABELS)
        except ValueError:
            return False
        return True

    for option in options_of(find_loss(name)):
        declared = declared_range(find_loss(name), option)
        if declared is not None:
            accepted = [is_accepted(option, value) for value in (-1.0, 0.0, 1e-3, 1e3)]
            expected = {"all": [True] * 4, "> 0": [False, False, True, True]}.get(declared)
            assert accepted == expected if expected else accepted not in ([True] * 4, [False, False, True, True]), (
                option
            )
            assert (option in learnable(find_loss(name))) == (declared != "limited")


def test_a_loss_over_class_vectors_has_a_set_for_each_of_its_columns():
    total = objective("arcface(on=('person', 'side'))", COLUMNS)
    shapes = {name: value.shape for name, value in total.init_params(jax.random.key(0), dim=DIM).items()}
    assert shapes == {"arcface.proxies.0": (4, DIM), "arcface.proxies.1": (2, DIM)}


def test_the_second_view_is_another_image_of_the_same_person():
    total = objective("vicreg", COLUMNS)
    embeddings = np.random.default_rng(0).normal(size=(len(LABELS), DIM)).astype(np.float32)
    # The next of the same person, in a circle; one alone and one unknown are left out.
    partner, where = [1, 0, 3, 2, 4, 5, 7, 6], np.array([1, 1, 1, 1, 0, 0, 1, 1], bool)
    expected = jaxmetric.vicreg_loss(embeddings, embeddings[partner], where=where)
    _, (terms, _) = step(total, {}, {}, embeddings, LABELS)
    np.testing.assert_allclose(terms["loss/vicreg"], expected, rtol=1e-5)


def test_unordered_values_in_the_loss_are_reported():
    columns = (COLUMNS[0], LabelColumn("age", ("1", "2", "3"), ordinal=True))
    assert objective("quadruplet", columns).terms[0].options["ordinal"] == (0, 2)
    with pytest.warns(UserWarning, match="^supcon ignores the order of age: two values agree only if they are equal$"):
        objective("supcon", columns)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("triplet(on='sid')", "triplet: on is 'sid', but no label column has this name; did you mean side?"),
        ("quadruplet(label_weights=(1, 2, 3))", "has 3 entries, expected one for each of the columns person, side"),
        ("quadruplet(on='side', label_weights=(1, 2))", "has 2 entries, expected one for each of the columns side"),
        ("margin(beta=(1.0, 1.1))", "margin: beta has 2 entries, expected one for each of the 4 values of person"),
        ("margin(beta=(1.0,) * 2, on='side')", "expected a number, a word in quotes or a tuple"),
        ((), "loss has no terms, expected at least one"),
        ("siglip(learn='scale', scale=0)", "siglip: scale is 0, expected a number above 0, from which it is learned"),
        ("ntxent(learn='temperature', temperature=-1.0)", "temperature is -1.0, expected a number above 0"),
        ("siglip(learn='bias', bias='x')", "siglip: bias is 'x', expected a number, from which it is learned"),
    ],
)
def test_options_that_do_not_fit_the_columns_are_a_one_line_error(expression, message):
    with pytest.raises(ConfigError) as error:
        objective(expression, COLUMNS)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_term_that_never_compared_anything_is_reported_once():
    watch = watch_comparisons(0)
    assert watch(1, {"valid/triplet": 0.0, "valid/softmax": 8.0, "loss": 0.1}, last=False) is None
    told = watch(30, {"valid/triplet": 0.0, "valid/softmax": 8.0, "loss": 0.1}, last=False)
    assert told.startswith("warning: nothing to compare for triplet in any of the 30 batches so far")
    assert watch(40, {"valid/triplet": 0.0}, last=True) is None


def test_a_term_that_compared_something_once_is_not_reported():
    watch = watch_comparisons(0)
    for step, valid in ((10, 0.0), (20, 0.5), (30, 0.0)):
        assert watch(step, {"valid/triplet": valid}, last=step == 30) is None


def test_a_short_run_reports_at_its_end():
    assert "any of the 3 batches" in watch_comparisons(7)(10, {"valid/quadruplet": 0.0}, last=True)
