"""Whether the batches of a plan can hold anything that the terms of a loss compare.

The quadruplet loss compares two pairs of images of which one certainly disagrees more than the other; the triplet loss
does so for the identity alone. A softmax compares a class with others. What can never hold such a comparison would
train to the end at a loss of 0, and is refused before the first step.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jaxmetric.agreement import column_scale
from jaxmetric.data import LEARNING, LabelColumn, LabeledImages, Plan
from jaxmetric.run.config import Config, ConfigError, LossConfig
from jaxmetric.run.setup import learning_groups, make_batch_plan

_BLOCK = 2**22  # pairs that are compared at a time
_MOST_PAIRS = 2**28  # a few seconds
_UNIQUE = -2  # a value that no other has


class Disagreement(NamedTuple):
    """How the labels of a pair are compared, as in `jaxmetric.quadruplet_loss`."""

    agreement: str = "count"
    label_weights: tuple[float, ...] | None = None
    ordinal: tuple[int, ...] | None = None


PLAIN = Disagreement()


class _Types(NamedTuple):
    """Images that may meet in a batch; those that compare alike are one type.

    Attributes:
      groups: `[U]`: a batch holds `images_per_class` images of a group.
      labels: `[U, T]`.
      twins: `[U]`: whether a batch can hold two images with the very same labels of one group, or one image twice.
      several: `[U]`: whether there are two such types, which differ where a value is `_UNIQUE`.
    """

    groups: np.ndarray
    labels: np.ndarray
    twins: np.ndarray
    several: np.ndarray


def check_comparable(config: Config, source: LabeledImages, plan: Plan) -> None:
    """Raises ConfigError if a term of the loss can find nothing to compare in any batch; it names the term and a cure.

    Args:
      config: the run.
      source: its images and labels.
      plan: its batches.
    """
    loss, columns = config.loss, source.columns
    learning, identity = source.labels[source.split == LEARNING], columns[0].name
    values = np.unique(learning[learning[:, 0] >= 0, 0])
    for term in ("soft_triple", "softmax"):
        if (weight := getattr(loss, f"{term}_weight")) and len(values) < 2:
            there = f"one value of {identity}" if len(values) else f"no known {identity}"
            raise ConfigError(
                f"{term}_weight is {weight}, but the learning images have {there}: a softmax needs at least two "
                f"classes; give --columns with another identity first, or a list with more of them"
            )
    for term, missing in (
        ("quadruplet", "two pairs of images of which one certainly agrees on more labels than the other"),
        ("triplet", f"two images of one {identity} and one of another"),
    ):
        if (weight := getattr(loss, f"{term}_weight")) and not _finds(term, loss, columns, source.labels, plan):
            raise ConfigError(
                f"{term}_weight is {weight}, but no batch of {_size_of(plan, config)} can hold {missing}; "
                f"{_cure(term, config, source, plan)}"
            )


def comparable_plan(config: Config, source: LabeledImages) -> Plan:
    """The plan of the batches, in which every term of the loss has something to compare.

    What no batch of these images can hold is told before a batch of too many identities, whose cure would not help.

    Raises:
      ConfigError: see `check_comparable` and `jaxmetric.run.setup.make_batch_plan`.
    """
    fitting = min(config.batch.classes_per_batch, learning_groups(source))
    batch = dataclasses.replace(config.batch, classes_per_batch=fitting)
    plan = make_batch_plan(batch, source, seed=config.seed)
    check_comparable(config, source, plan)
    return plan if batch == config.batch else make_batch_plan(config.batch, source, seed=config.seed)


def has_comparison(labels: np.ndarray, plan: Plan, disagreement: Disagreement = PLAIN) -> bool:
    """Whether a batch can hold two pairs of images, one of which certainly disagrees more than the other.

    Args:
      labels: integers `[N, T]`, -1 where one is missing.
      plan: of those N images; images that it leaves out may be missing from its groups.
      disagreement: how labels are compared.

    Returns:
      False only if no batch can. True only if one can, if no label is missing; else, or where there are more than some
      ten thousand kinds of images, it may be that none does.

    Example:
      >>> from jaxmetric.data import make_plan
      >>> labels = np.array([[0], [0], [1], [1]])
      >>> [
      ...     has_comparison(labels, make_plan(labels[:, 0], classes_per_batch=2, images_per_class=K))
      ...     for K in (1, 2)
      ... ]
      [False, True]
    """
    if plan.batch_size < 3:
        return False
    return any(_levels_differ(types, plan, disagreement) for types in _types_of_batches(labels, plan, disagreement))


def _finds(term: str, loss: LossConfig, columns: tuple[LabelColumn, ...], labels: np.ndarray, plan: Plan) -> bool:
    if term == "triplet":
        return has_comparison(labels[:, :1], _without(plan, labels[:, 0] < 0))
    if loss.quadruplet_samples:
        return has_comparison(labels, _without(plan, np.any(labels < 0, axis=1)))
    ordinal = tuple(len(column.values) - 1 if column.ordinal else 0 for column in columns)
    disagreement = Disagreement(loss.quadruplet_agreement, loss.label_weights or None, ordinal)
    return has_comparison(labels, plan, disagreement)


def _without(plan: Plan, left_out: np.ndarray) -> Plan:
    """A plan whose groups keep their sizes, with -1 in place of the images that a term leaves out."""
    return dataclasses.replace(plan, groups=tuple(np.where(left_out[group], -1, group) for group in plan.groups))


def _types_of_batches(labels: np.ndarray, plan: Plan, disagreement: Disagreement) -> Iterator[_Types]:
    """The types of images that can meet in a batch: those of one group where a batch has one, else all."""
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
    """Fewer types that compare alike: a value that one type alone has differs from all others, whatever it is."""
    ordinal = disagreement.ordinal or (0,) * labels.shape[1]
    rows = np.column_stack([twins, groups, labels])
    for place, range_ in enumerate((0, *ordinal), start=1):
        _, inverse, counts = np.unique(rows[:, place], return_inverse=True, return_counts=True)
        if not range_:
            rows[(counts[inverse] == 1) & (rows[:, place] >= 0), place] = _UNIQUE
    rows, counts = np.unique(rows, axis=0, return_counts=True)
    return _Types(rows[:, 1], rows[:, 2:], rows[:, 0] > 0, counts > 1)


def _levels_differ(types: _Types, plan: Plan, disagreement: Disagreement) -> bool:
    """Whether the pairs that can meet differ: the most by which one certainly disagrees exceeds what another can."""
    size = len(types.groups)
    if size**2 > _MOST_PAIRS:
        return True
    # Two images with the same labels may disagree where these are unknown.
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
            return True
    return False


def _disagreements(
    first: np.ndarray, second: np.ndarray, how: Disagreement, *, same: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The least and the most by which labels `[..., T]` can disagree, as shares, so rounded that equal sums are equal.

    `same` takes the two for the same labels, the unique ones too.
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


def _cure(term: str, config: Config, source: LabeledImages, plan: Plan) -> str:
    """What would give the term something to compare, tried out: other numbers, or fewer columns."""
    for P, K in sorted(itertools.product(_from(plan.classes_per_batch, 2), _from(plan.images_per_class, 4)), key=sum):
        uniform = not config.batch.classes_per_batch
        if len(plan.groups) < P or (uniform and P > 1):
            continue
        other = dataclasses.replace(plan, classes_per_batch=P, images_per_class=K)
        if _finds(term, config.loss, source.columns, source.labels, other):
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
