"""Checks that the batches of a plan can hold something that each term of an objective compares.

A term compares two pairs of images, one of which certainly disagrees on more labels than the other. If all pairs
disagree equally, the loss itself shows whether it compares anything. A loss over class vectors compares a class with
others. A term with nothing to compare in any batch would train to the end with a loss of 0, so it is refused before the
first step.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmetric import parallel
from jaxmetric.agreement import Disagreement, column_scale
from jaxmetric.data import LEARNING, LabeledImages, Plan
from jaxmetric.run.config import Config
from jaxmetric.run.errors import ConfigError
from jaxmetric.run.objective import PlacedTerm, WeightedSum
from jaxmetric.run.plan import learning_groups, make_batch_plan
from jaxmetric.run.terms import class_vectors_of, parameters, takes_columns

_BLOCK = 2**22  # number of pairs compared at a time
_MOST_PAIRS = 2**28  # a few seconds
_UNIQUE = -2  # a value that differs from all others


PLAIN = Disagreement()


class _Types(NamedTuple):
    """Types of images that can be in a batch together. Images with the same comparisons have one type.

    Attributes:
      groups: `[U]`: the group of each type; a batch holds `images_per_class` images of a group.
      labels: `[U, T]`.
      twins: `[U]`: whether a batch can hold two images of one group with identical labels, or one image twice.
      several: `[U]`: whether there are at least two such types, which differ in their `_UNIQUE` values.
    """

    groups: np.ndarray
    labels: np.ndarray
    twins: np.ndarray
    several: np.ndarray


class _Levels(NamedTuple):
    """The disagreement of the pairs of images that can be in a batch together, as shares of all labels.

    Attributes:
      low: the smallest possible disagreement of a pair; inf if no two images can be in a batch.
      high: the largest certain disagreement; -inf if no two images can be in a batch.
      several_pairs: whether a batch holds more than one pair.
    """

    low: float
    high: float
    several_pairs: bool


def check_comparable(terms: Sequence[PlacedTerm], config: Config, source: LabeledImages, plan: Plan) -> None:
    """Raises ConfigError if a term of the loss has nothing to compare in any batch; it names the term and a cure.

    Args:
      terms: the terms of the loss.
      config: the configuration of the run.
      source: its images and labels.
      plan: its batches.
    """
    learning = source.labels[source.split == LEARNING]
    for placed in terms:
        if class_vectors_of(placed.term.loss):
            for t in placed.columns:
                _check_classes(placed, source.columns[t].name, learning[:, t])
        elif not _finds(placed, source, plan):
            raise ConfigError(
                f"{placed.term} is in the loss, but no batch of {_size_of(plan, config)} can hold "
                f"{_missing(placed, source)}; {_cure(placed, config, source, plan)}"
            )


def comparable_plan(terms: Sequence[PlacedTerm], config: Config, source: LabeledImages) -> Plan:
    """Returns a plan of batches in which every term of the loss has something to compare.

    A term with nothing to compare is reported before a batch with too many identities, whose cure would not help.

    Raises:
      ConfigError: see `check_comparable` and `jaxmetric.run.plan.make_batch_plan`.
    """
    fitting = min(config.batch.classes_per_batch, learning_groups(source))
    batch = dataclasses.replace(config.batch, classes_per_batch=fitting)
    plan = make_batch_plan(batch, source, seed=config.seed)
    check_comparable(terms, config, source, plan)
    return plan if batch == config.batch else make_batch_plan(config.batch, source, seed=config.seed)


def has_comparison(labels: np.ndarray, plan: Plan, disagreement: Disagreement = PLAIN) -> bool:
    """Returns whether a batch can hold two pairs of images of which one certainly disagrees more than the other.

    Args:
      labels: integers `[N, T]`, -1 for missing ones.
      plan: the plan of those N images; images that it excludes may be missing from its groups.
      disagreement: how labels are compared.

    Returns:
      False only if no batch can. True is certain if no label is missing. With missing labels, or with more than about
      ten thousand types of images, it may be True although no batch can.

    Example:
      >>> from jaxmetric.data import make_plan
      >>> labels = np.array([[0], [0], [1], [1]])
      >>> [
      ...     has_comparison(labels, make_plan(labels[:, 0], classes_per_batch=2, images_per_class=K))
      ...     for K in (1, 2)
      ... ]
      [False, True]
    """
    return any(map(_differs, _levels_of_batches(labels, plan, disagreement)))


def _check_classes(placed: PlacedTerm, column: str, codes: np.ndarray) -> None:
    known = np.unique(codes[codes >= 0])
    if len(known) < 2:
        there = f"one value of {column}" if len(known) else f"no known {column}"
        raise ConfigError(
            f"{placed.term} is in the loss, but the learning images have {there}: class vectors need at least two "
            "classes; give --columns with another identity first, or a list with more of them"
        )


def _finds(placed: PlacedTerm, source: LabeledImages, plan: Plan) -> bool:
    """Returns whether a batch can hold something that a term compares; True if the labels do not decide."""
    labels = source.labels[:, list(placed.columns)]
    loss, options = placed.term.loss, placed.options
    if not takes_columns(loss) or "num_quadruplets" in parameters(loss):  # such a loss skips the whole example
        plan = _without(plan, np.any(labels < 0, axis=1))
    if placed.term.memory:
        plan = _over_all_batches(plan)
    disagreement = Disagreement(options.get("agreement", "count"), options.get("label_weights"), options.get("ordinal"))
    levels = list(_levels_of_batches(labels, plan, disagreement))
    if any(map(_differs, levels)):
        return True
    alike = {share for each in levels for share in (each.low, each.high) if np.isfinite(share)}
    return any(_compares_alike(placed, share) for share in alike)


def _over_all_batches(plan: Plan) -> Plan:
    """Returns a plan with all images in each batch, as a memory of past batches eventually holds them."""
    most = max(len(group) for group in plan.groups)
    return dataclasses.replace(
        plan, classes_per_batch=len(plan.groups), images_per_class=max(most, plan.images_per_class)
    )


def _compares_alike(placed: PlacedTerm, share: float) -> bool:
    """Returns whether a term compares anything if all pairs disagree in this share of their labels."""
    batch = 4
    different = np.repeat(np.arange(batch)[:, None], len(placed.columns), axis=1)
    if share == 0:
        labels = np.zeros_like(different)
    elif share >= 1:
        labels = different
    else:
        labels = np.where(np.arange(len(placed.columns)) == 0, 0, different)
    term = placed._replace(columns=tuple(range(len(placed.columns))))
    options = {name: 2 if name == "num_anchors" else value for name, value in placed.options.items()}
    total = WeightedSum((term._replace(options=options),), ())
    embeddings = jnp.eye(batch)

    def valid(key: jax.Array) -> jax.Array:
        _, (reported, _) = total(key, total.init_params(key, dim=batch), {}, embeddings, jnp.asarray(labels, jnp.int32))
        return reported[f"valid/{placed.key}"]

    keys = jax.random.split(jax.random.key(0), 1)
    return bool(jax.vmap(valid, axis_name=parallel.AXIS_NAME)(keys)[0] > 0)


def _without(plan: Plan, left_out: np.ndarray) -> Plan:
    """Returns a plan with groups of the same sizes, and -1 for the images that a term skips."""
    return dataclasses.replace(plan, groups=tuple(np.where(left_out[group], -1, group) for group in plan.groups))


def _types_of_batches(labels: np.ndarray, plan: Plan, disagreement: Disagreement) -> Iterator[_Types]:
    """Yields the types of images that can be in a batch together: per group if a batch has one group, else all."""
    together = [[group] for group in plan.groups] if plan.classes_per_batch == 1 else [list(plan.groups)]
    for groups in together:
        sizes = np.array([len(group) for group in groups])
        members, places = np.concatenate(groups), np.repeat(np.arange(len(groups)), sizes)
        repeated = sizes[places] < plan.images_per_class
        rows = np.column_stack([places, repeated, labels[members]])[members >= 0]
        types, counts = np.unique(rows, axis=0, return_counts=True)
        twins = (plan.images_per_class > 1) & ((types[:, 1] > 0) | (counts > 1))
        yield _merge(types[:, 0], types[:, 2:], twins, disagreement)


def _merge(groups: np.ndarray, labels: np.ndarray, twins: np.ndarray, disagreement: Disagreement) -> _Types:
    """Merges types with the same comparisons: values that occur in only one type become `_UNIQUE`."""
    ordinal = disagreement.ordinal or (0,) * labels.shape[1]
    rows = np.column_stack([twins, groups, labels])
    for place, range_ in enumerate((0, *ordinal), start=1):
        _, inverse, counts = np.unique(rows[:, place], return_inverse=True, return_counts=True)
        if not range_:
            rows[(counts[inverse] == 1) & (rows[:, place] >= 0), place] = _UNIQUE
    rows, counts = np.unique(rows, axis=0, return_counts=True)
    return _Types(rows[:, 1], rows[:, 2:], rows[:, 0] > 0, counts > 1)


def _levels_of_batches(labels: np.ndarray, plan: Plan, how: Disagreement) -> Iterator[_Levels]:
    for types in _types_of_batches(labels, plan, how):
        yield _levels(types, plan, how)


def _differs(levels: _Levels) -> bool:
    """Returns whether a batch can hold two pairs of which one certainly disagrees more than the other."""
    return levels.several_pairs and levels.low < levels.high


def _levels(types: _Types, plan: Plan, disagreement: Disagreement) -> _Levels:
    size, several_pairs = len(types.groups), plan.batch_size > 2
    if size**2 > _MOST_PAIRS:
        return _Levels(0.0, 1.0, several_pairs)
    # Two images with the same labels may disagree on unknown labels.
    twins = types.labels[types.twins]
    unknown = _disagreements(twins, twins, disagreement, same=True)[1] if len(twins) else np.array([np.inf])
    smallest, largest = unknown.min(), 0.0 if len(twins) else -np.inf
    step = max(_BLOCK // max(size, 1), 1)
    for start in range(0, size, step):
        rows = np.arange(start, min(start + step, size))
        meet = _differ(types.groups[rows, None], types.groups[None]) | (plan.images_per_class > 1)
        meet[rows - start, rows] &= types.several[rows]
        lower, upper = _disagreements(types.labels[rows, None], types.labels[None], disagreement)
        smallest = min(smallest, upper[meet].min(initial=np.inf))
        largest = max(largest, lower[meet].max(initial=-np.inf))
        if largest > smallest:
            break
    return _Levels(float(smallest), float(largest), several_pairs)


def _disagreements(
    first: np.ndarray, second: np.ndarray, how: Disagreement, *, same: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the smallest and largest possible disagreement of labels `[..., T]`, as shares rounded to 6 digits.

    With `same`, both sides are the same labels, including unique ones.
    """
    scale = column_scale(first.shape[-1], how.label_weights, how.ordinal)
    largest = sum(weight * (range_ or 1) for weight, range_ in scale)
    lower, upper = (np.zeros(np.broadcast_shapes(first.shape, second.shape)[:-1]) for _ in range(2))
    for t, (weight, range_) in enumerate(scale):
        a, b = first[..., t], second[..., t]
        known = (a != -1) & (b != -1)
        difference = np.minimum(np.abs(a - b), range_) if range_ or same else _differ(a, b)
        lower += np.where(known, difference, 0) * weight / largest
        upper += np.where(known, difference, range_ or 1) * weight / largest
    if how.agreement == "any":
        return (lower > 0).astype(float), (upper > 0).astype(float)
    return np.round(lower, 6), np.round(upper, 6)


def _differ(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a != b) | (a == _UNIQUE)


def _size_of(plan: Plan, config: Config) -> str:
    if not config.batch.classes_per_batch:
        return f"{plan.batch_size} images"
    return f"{plan.classes_per_batch} x {plan.images_per_class} images (identities x images of each)"


def _missing(placed: PlacedTerm, source: LabeledImages) -> str:
    """Describes what a term compares."""
    if takes_columns(placed.term.loss):
        return "two pairs of images of which one certainly agrees on more labels than the other"
    name = source.columns[placed.columns[0]].name
    return f"two images of one {name}" if _compares_alike(placed, 0) else f"two images of one {name} and one of another"


def _cure(placed: PlacedTerm, config: Config, source: LabeledImages, plan: Plan) -> str:
    """Finds batch sizes or columns with which the term has something to compare."""
    for P, K in sorted(itertools.product(_from(plan.classes_per_batch, 2), _from(plan.images_per_class, 4)), key=sum):
        uniform = not config.batch.classes_per_batch
        if len(plan.groups) < P or (uniform and P > 1):
            continue
        other = dataclasses.replace(plan, classes_per_batch=P, images_per_class=K)
        if _finds(placed, source, other):
            classes = f"--classes-per-batch {P}" if plan.classes_per_batch < P else ""
            images = f"--images-per-class {K}" if plan.images_per_class < K else ""
            return f"give {' '.join(filter(None, (classes, images)))} or more"
    learning = source.labels[source.split == LEARNING]
    known = [t for t in range(len(source.columns)) if (learning[:, t] >= 0).any()]
    names = [column.name for column in source.columns]
    if 0 < len(known) < len(names):
        empty = ", ".join(repr(name) for t, name in enumerate(names) if t not in known)
        return f"no learning image has a value in {empty}: give --columns {' '.join(names[t] for t in known)}"
    few = ", ".join(f"{name} ({len(np.unique(learning[learning[:, t] >= 0, t]))})" for t, name in enumerate(names))
    return f"no other batch of these labels can: the learning images need more values than those of {few}"


def _from(number: int, least: int) -> range:
    return range(number, max(number, least) + 1)
