"""The objective of a run: a weighted sum of losses by name, with their parameters and their state.

    total = objective("quadruplet(margin=0.3) + 2.5*soft_triple(on='identity', centers_per_class=3)", columns)
    params, memory = total.init_params(key, dim=128), total.init_memory(dim=128)
    loss, (reported, memory) = total(key, params, memory, embeddings, labels)

Every exported loss can be a term. Its signature determines its arguments: `centers` or `proxies` are class vectors that
the run learns, a `key` is new at every step, and `references` can be a memory of past batches.
"""

import dataclasses
import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmetric import losses, memory, mining
from jaxmetric.data import LabelColumn
from jaxmetric.losses._engine.comparison import named_function
from jaxmetric.losses._engine.types import declared_range, declared_shape
from jaxmetric.run.errors import ConfigError
from jaxmetric.run.names import nearest_or_all
from jaxmetric.run.terms import (
    Miner,
    Term,
    class_vectors_of,
    miner_distance,
    parameters,
    parse_miner,
    parse_terms,
    takes_columns,
)

NO_CLASS = -1


class PlacedTerm(NamedTuple):
    """A term and the label columns of the data.

    Attributes:
      key: the name under which its values are reported: the name of the loss, with a number if it is repeated.
      term: the term.
      columns: the indices of its label columns.
      options: the options of the loss, completed from the columns.
    """

    key: str
    term: Term
    columns: tuple[int, ...]
    options: Mapping[str, Any]


class _Classes(NamedTuple):
    """The classes of one label column at one step.

    Attributes:
      labels: `[B]`: the class of each example, as an index of the used vectors.
      rows: the rows of the used vectors; None for all.
      num_classes: the number of used vectors on all devices.
    """

    labels: jax.Array
    rows: jax.Array | None
    num_classes: int


@dataclasses.dataclass(frozen=True)
class WeightedSum:
    """A weighted sum of losses, in the form of an objective of `jaxmetric.training.make_train_step`; see `objective`.

    Attributes:
      terms: the terms with their columns.
      classes: for each label column, the codes that are classes, ascending.
      sampled_classes: the number of classes that losses over class vectors use in a step; 0 for all.
      shard_axis: the mapped axis of the devices that hold a share of the classes each; None if every device holds all.
    """

    terms: tuple[PlacedTerm, ...]
    classes: tuple[np.ndarray, ...]
    sampled_classes: int = 0
    shard_axis: str | None = None

    def init_params(self, key: jax.Array, *, dim: int) -> dict[str, jax.Array]:
        """Returns the learned parameters of the terms, class vectors and numbers, by `<term>.<argument>`.

        Args:
          key: a `jax.random` key.
          dim: D of the embeddings.

        Of a number that must be above 0, such as a scale, the parameter is the logarithm.
        """
        params: dict[str, jax.Array] = {}
        names = [(placed, t, name) for placed in self.terms for t, name in _vector_names(placed).items()]
        for number, (placed, t, name) in enumerate(names):
            per_class = placed.term.centers_per_class
            shape = len(self.classes[t]), max(per_class, 1), dim
            centers = losses.init_centers(jax.random.fold_in(key, number), *shape)
            params[name] = centers if per_class else centers[:, 0]
        for placed in self.terms:
            for option in placed.term.learn:
                start = jnp.asarray(_start_of(placed, option), jnp.float32)
                params[f"{placed.key}.{option}"] = jnp.log(start) if _is_positive(placed, option) else start
        return params

    def init_memory(self, *, dim: int) -> dict[str, Any]:
        """Returns the initial, empty state of the terms between steps, by term.

        Args:
          dim: D of the embeddings.
        """
        remembered = {placed.key: _initial_memory(placed, dim) for placed in self.terms}
        return {key: each for key, each in remembered.items() if each}

    def __call__(
        self,
        key: jax.Array,
        params: Mapping[str, jax.Array],
        remembered: Mapping[str, Any],
        embeddings: jax.Array,
        labels: jax.Array,
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], dict[str, Any]]]:
        """Computes the loss of a global batch.

        Args:
          key: a `jax.random` key, the same on all devices.
          params: see `init_params`; with sharded classes, the vectors of this device.
          remembered: see `init_memory`.
          embeddings: `[B, D]`.
          labels: `[B, T]` codes of all columns; -1 is missing. A loss over several columns skips a missing label; other
            losses skip the example.

        Returns:
          The loss, and a pair of the values to report and the new state. Each term reports its value as `loss/<term>`,
          and the amount that it compared in the batch as `valid/<term>`, see `LossStats`. If it is 0, the term
          compared nothing, and its loss of 0 means nothing.
        """
        with_vectors = {t for placed in self.terms for t in _vector_names(placed)}
        classes = {t: self._classes_of_step(key, labels[:, t], t) for t in sorted(with_vectors)}
        total = jnp.zeros(())
        reported: dict[str, jax.Array] = {}
        updated: dict[str, Any] = {}
        for number, placed in enumerate(self.terms):
            arguments = self._learned(placed, params, classes) | _compared(placed, labels, classes)
            if "embeddings" in parameters(placed.term.loss):
                arguments["embeddings"] = embeddings
            term_key = jax.random.fold_in(key, 2 + number)
            if "key" in parameters(placed.term.loss):
                arguments["key"] = term_key
            if placed.key in remembered:
                arguments |= _state_arguments(remembered[placed.key], embeddings, arguments)
            if placed.term.pairs:
                arguments["pairs"] = _mined_pairs(placed, jax.random.fold_in(term_key, 1), embeddings, arguments)
            if "other" in parameters(placed.term.loss):
                arguments |= _second_views(embeddings, arguments)
            loss, stats = placed.term.loss(**{**placed.options, **arguments}, has_aux=True)
            total += placed.term.weight * loss
            reported |= {f"loss/{placed.key}": loss, f"valid/{placed.key}": jnp.sum(stats.valid)}
            if placed.key in remembered:
                updated[placed.key] = _next_memory(remembered[placed.key], embeddings, arguments, stats)
        return total, (reported, updated)

    def _classes_of_step(self, key: jax.Array, codes: jax.Array, column: int) -> _Classes:
        """Returns the classes of a column: all on this device, or sampled ones."""
        count = len(self.classes[column])
        class_of_code = np.full(int(self.classes[column].max(initial=0)) + 1, NO_CLASS, np.int32)
        class_of_code[self.classes[column]] = np.arange(count)
        found = jnp.asarray(class_of_code).at[codes].get(mode="fill", fill_value=NO_CLASS, wrap_negative_indices=False)
        labels = jnp.where(codes >= 0, found, NO_CLASS)
        if not self.sampled_classes:
            return _Classes(labels, None, count)
        sampled = losses.sample_classes(
            jax.random.fold_in(key, 1 if column == 0 else 1000 + column),
            labels,
            count,
            self.sampled_classes,
            where=codes >= 0,
            axis_name=self.shard_axis,
        )
        return _Classes(sampled.labels, sampled.rows, self.sampled_classes)

    def _learned(
        self, placed: PlacedTerm, params: Mapping[str, jax.Array], classes: Mapping[int, _Classes]
    ) -> dict[str, Any]:
        """Returns the learned arguments of a term's loss."""
        learned: dict[str, Any] = {}
        for option in placed.term.learn:
            number = params[f"{placed.key}.{option}"]
            learned[option] = jnp.exp(number) if _is_positive(placed, option) else number
        vectors: list[Any] = []
        for t, name in _vector_names(placed).items():
            used = params[name] if classes[t].rows is None else params[name][classes[t].rows]
            if self.shard_axis:
                num_classes = classes[t].num_classes
                vectors.append(losses.ClassShard(used, axis_name=self.shard_axis, num_classes=num_classes))
            else:
                vectors.append(used)
        if vectors:
            name, _ = class_vectors_of(placed.term.loss) or ("", "")
            learned[name] = vectors[0] if len(vectors) == 1 else tuple(vectors)
        return learned


def objective(
    terms: str | Term | Sequence[Term],
    columns: Sequence[LabelColumn],
    *,
    classes: Sequence[np.ndarray] | None = None,
    sampled_classes: int = 0,
    shard_classes: bool = False,
    axis_name: str | None = None,
) -> WeightedSum:
    """Places terms on the label columns of a data set.

    Args:
      terms: an expression, a term, or several terms.
      columns: the label columns, the identity first.
      classes: for each column, the codes that are classes, ascending, such as those of learning images; all values if
        not given.
      sampled_classes: the number of classes that losses over class vectors use in a step, including those of the batch,
        on all devices; 0 for all.
      shard_classes: whether each device holds the vectors of its share of the classes. The objective must then run
        inside `shard_map` over `axis_name`.
      axis_name: the mapped axis of the devices that compute the objective; None if there is one device.

    Raises:
      ConfigError: if there is no term, a term names an unknown column, its options do not fit the columns, or classes
        are sharded without an axis; one line.

    Example:
      >>> from jaxmetric.data import LabelColumn
      >>> columns = LabelColumn("person", ("ann", "bob")), LabelColumn("glasses", ("no", "yes"))
      >>> total = objective("quadruplet + 0.5*center(on='glasses')", columns)
      >>> [(placed.key, placed.columns) for placed in total.terms]
      [('quadruplet', (0, 1)), ('center', (1,))]
      >>> {name: vectors.shape for name, vectors in total.init_params(jax.random.key(0), dim=8).items()}
      {'center.centers': (2, 8)}
    """
    if isinstance(terms, str):
        terms = parse_terms(terms)
    terms = (terms,) if isinstance(terms, Term) else tuple(terms)
    if not terms:
        raise ConfigError("loss has no terms, expected at least one")
    if shard_classes and axis_name is None:
        raise ConfigError("shard_classes needs axis_name, the mapped axis of the devices that hold the classes")
    names = [term.name for term in terms]
    keys = [
        name if names[:i].count(name) == 0 else f"{name}_{names[:i].count(name) + 1}" for i, name in enumerate(names)
    ]
    if classes is None:
        classes = [np.arange(len(column.values)) for column in columns]
    placed = tuple(_place(key, term, columns, axis_name) for key, term in zip(keys, terms, strict=True))
    return WeightedSum(placed, tuple(classes), sampled_classes, axis_name if shard_classes else None)


def _place(key: str, term: Term, columns: Sequence[LabelColumn], axis_name: str | None) -> PlacedTerm:
    names = [column.name for column in columns]
    for name in term.on:
        if name not in names:
            raise ConfigError(f"{key}: on is {name!r}, but no label column has this name{nearest_or_all(name, names)}")
    places = tuple(names.index(name) for name in term.on)
    if not places:
        places = tuple(range(len(columns))) if takes_columns(term.loss) else (0,)
    options = dict(term.options)
    weights = options.get("label_weights")
    if isinstance(weights, tuple) and len(weights) != len(places):
        raise ConfigError(
            f"{key}: label_weights has {len(weights)} entries, expected one for each of the columns "
            f"{', '.join(names[t] for t in places)}"
        )
    for option, value in options.items():
        if isinstance(value, tuple) and declared_shape(term.loss, option) == "[C]":
            column = columns[places[0]]
            if len(value) != len(column.values):
                raise ConfigError(
                    f"{key}: {option} has {len(value)} entries, expected one for each of the {len(column.values)} "
                    f"values of {column.name}, or a number"
                )
    if "ordinal" in parameters(term.loss):
        largest = tuple(len(columns[t].values) - 1 if columns[t].ordinal else 0 for t in places)
        options.setdefault("ordinal", largest)
    elif takes_columns(term.loss) and (ordered := [names[t] for t in places if columns[t].ordinal]):
        warnings.warn(
            f"{key} ignores the order of {', '.join(ordered)}: two values agree only if they are equal", stacklevel=2
        )
    if "axis_name" in parameters(term.loss):
        options["axis_name"] = axis_name
    placed = PlacedTerm(key, term, places, options)
    for option in term.learn:
        start = _start_of(placed, option)
        if not isinstance(start, (int, float)) or (_is_positive(placed, option) and not start > 0):
            above = " above 0" if _is_positive(placed, option) else ""
            raise ConfigError(f"{key}: {option} is {start!r}, expected a number{above}, from which it is learned")
    return placed


def _start_of(placed: PlacedTerm, option: str) -> Any:
    return placed.options.get(option, parameters(placed.term.loss)[option].default)


def _is_positive(placed: PlacedTerm, option: str) -> bool:
    return declared_range(placed.term.loss, option) == "> 0"


def _vector_names(placed: PlacedTerm) -> dict[int, str]:
    """Returns the names of a term's class vectors among the parameters, by label column."""
    vectors = class_vectors_of(placed.term.loss)
    if vectors is None:
        return {}
    if len(placed.columns) == 1:
        return {placed.columns[0]: f"{placed.key}.{vectors[0]}"}
    return {t: f"{placed.key}.{vectors[0]}.{t}" for t in placed.columns}


def _compared(placed: PlacedTerm, labels: jax.Array, classes: Mapping[int, _Classes]) -> dict[str, jax.Array]:
    """Returns the labels of a term, `[B]` or `[B, T]`, and which of them are known."""
    known = labels[:, list(placed.columns)] >= 0
    codes = [classes[t].labels if t in _vector_names(placed) else labels[:, t] for t in placed.columns]
    if takes_columns(placed.term.loss) or len(codes) > 1:
        return {"labels": jnp.stack(codes, axis=1), "where": known}
    return {"labels": codes[0], "where": known[:, 0]}


def _initial_memory(placed: PlacedTerm, dim: int) -> dict[str, Any]:
    term = placed.term
    remembered: dict[str, Any] = {}
    if term.memory:
        num_labels = len(placed.columns) if takes_columns(term.loss) else None
        remembered["references"] = memory.init(term.memory, dim, num_labels=num_labels)
    if "histogram" in parameters(term.loss):
        num_bins = placed.options.get("num_bins", parameters(term.loss)["num_bins"].default)
        remembered["histogram"] = jnp.zeros(num_bins)
    return remembered


def _state_arguments(
    remembered: Mapping[str, Any], embeddings: jax.Array, arguments: Mapping[str, jax.Array]
) -> dict[str, Any]:
    """Returns the arguments that pass the state of a term to its loss."""
    passed = dict(remembered)
    if "references" in passed:
        labels, where = arguments["labels"], arguments["where"]
        passed["references"] = memory.as_references(passed["references"], embeddings, labels, where=where)
    return passed


def _next_memory(
    before: Mapping[str, Any], embeddings: jax.Array, arguments: Mapping[str, jax.Array], stats: Any
) -> dict[str, Any]:
    after = {}
    if "references" in before:
        labels, where = arguments["labels"], arguments["where"]
        after["references"] = memory.update(before["references"], embeddings, labels, where)
    if "histogram" in before:
        after["histogram"] = stats.histogram
    return after


def _mined_pairs(placed: PlacedTerm, key: jax.Array, embeddings: jax.Array, arguments: Mapping[str, Any]) -> jax.Array:
    """Returns the pairs `[B, R]` that a term's miner selects, by the first of its label columns."""
    miner = parse_miner(placed.term.pairs)
    options = dict(miner.options)
    name = options.pop("distance", None) or _default_distance(placed, miner)
    embeddings, references = jax.lax.stop_gradient((embeddings, arguments.get("references")))
    labels, where = arguments["labels"], arguments["where"]
    if labels.ndim == 2:
        labels, where = labels[:, 0], where[:, 0]
        if references is not None:
            references = references._replace(labels=references.labels[:, 0], where=references.where[:, 0])
    positives, negatives = mining.label_pairs(labels, references, where=where)
    takes = inspect.signature(miner.function).parameters
    if "key" in takes:
        options["key"] = key
    if "dim" in takes:
        options.setdefault("dim", embeddings.shape[1])
    if "embeddings" in takes:
        return miner.function(
            embeddings=embeddings, positives=positives, negatives=negatives, references=references, **options
        )
    others = embeddings if references is None else references.embeddings
    values = named_function("distance", name)(embeddings, others)
    return miner.function(distances=values, positives=positives, negatives=negatives, **options)


def _default_distance(placed: PlacedTerm, miner: Miner) -> str:
    """Returns the distance that a miner is defined on, else that of the loss, else the cosine distance."""
    if own := miner_distance(miner.function):
        return own
    default = parameters(placed.term.loss)["distance"].default if "distance" in parameters(placed.term.loss) else None
    return str(placed.options.get("distance", default) or "cosine")


def _second_views(embeddings: jax.Array, arguments: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns for each example the embedding of another example of its class, as the second of two views.

    The examples of a class follow each other in a circle. An example that is alone in its class is skipped.
    """
    labels, where = arguments.pop("labels"), arguments.pop("where")
    batch = labels.shape[0]
    same = (labels[:, None] == labels[None, :]) & where[:, None] & where[None, :]
    steps = (jnp.arange(batch)[None, :] - jnp.arange(batch)[:, None]) % batch  # 0 is the example itself
    partner = jnp.argmin(jnp.where(same & (steps > 0), steps, batch), axis=1)
    return {"other": embeddings[partner], "where": where & (jnp.sum(same, axis=1) > 1)}
