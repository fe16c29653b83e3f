"""The terms of an objective: losses by name with their options, written as an expression or as data.

    20*quadruplet(margin=0.3, label_weights=(3, 1, 3)) + 2.5*soft_triple(on="identity", centers_per_class=3)

An expression is a sum of terms. A term is a number times the name of a loss without `_loss`, with options as literals.
`parse_terms` reads one without evaluating anything, and `format_terms` writes one.
"""

import ast
import dataclasses
import inspect
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple, get_args

import jax
import numpy as np

from jaxmetric import losses, mining
from jaxmetric.losses._engine.types import DistanceName, declared_range, declared_shape
from jaxmetric.run.errors import ConfigError
from jaxmetric.run.names import nearest_or_all

DEFAULT_CENTERS = 10  # per class, as in the SoftTriple paper
# Arguments of losses that the objective fills in.
FILLED_IN = frozenset(
    {"embeddings", "labels", "other", "key", "centers", "proxies", "references", "where", "weights", "has_aux"}
    | {"axis_name", "histogram", "triplets", "pairs"}
)

# The distances of miners whose formulas hold for one distance only.
_DISTANCES = {mining.distance_weighted: "euclidean", mining.multi_similarity: "cosine"}
_FILLED_IN_OF_MINERS = frozenset({"references", "dim"})
_FIELDS = frozenset({"name", "options", "self", "weight"})  # arguments of `Term` that are not options of a term


@dataclasses.dataclass(frozen=True, init=False)
class Term:
    """A loss of an objective.

    Attributes:
      name: the name of an exported loss without `_loss`.
      weight: the factor of the loss, above 0.
      on: the label columns. If empty: all columns for a loss that orders or grades pairs by several, else the first.
      pairs: the expression of a miner, such as `"multi_similarity(epsilon=0.1)"`; empty for all pairs.
      memory: the number of past embeddings that the batch is also compared with.
      learn: options of the loss that the run learns, starting from their values; those above 0 by their logarithm.
      centers_per_class: K of a loss that takes centers `[C, K, D]`, by default the SoftTriple paper's 10; 0 for others.
      options: the other options of the loss, by name: numbers, words, None, and tuples of these. The constructor takes
        them as keywords too.

    Raises:
      ConfigError: if the loss or an option is unknown, or a value does not fit; one line.

    Example:
      >>> term = Term("quadruplet", weight=20.0, margin=0.3)
      >>> term
      Term('20*quadruplet(margin=0.3)')
      >>> dataclasses.replace(term, weight=1.0)
      Term('quadruplet(margin=0.3)')
    """

    name: str
    weight: float
    on: tuple[str, ...]
    pairs: str
    memory: int
    learn: tuple[str, ...]
    centers_per_class: int
    options: tuple[tuple[str, Any], ...]

    def __init__(
        self,
        name: str,
        *,
        weight: float = 1.0,
        on: str | tuple[str, ...] = (),
        pairs: str = "",
        memory: int = 0,
        learn: str | tuple[str, ...] = (),
        centers_per_class: int | None = None,
        options: Iterable[tuple[str, Any]] = (),
        **more_options: Any,
    ) -> None:
        if centers_per_class is None:
            centers_per_class = DEFAULT_CENTERS if _has_centers(find_loss(name)) else 0
        given = {**dict(options), **more_options}
        values = {
            "name": name,
            "weight": _check_weight(name, weight),
            "on": _names(name, "on", on),
            "pairs": _plain(pairs, f"{name}: pairs"),
            "memory": _plain(memory, f"{name}: memory"),
            "learn": _names(name, "learn", learn),
            "centers_per_class": _plain(centers_per_class, f"{name}: centers_per_class"),
            "options": tuple((option, _plain(given[option], f"{name}: {option}")) for option in sorted(given)),
        }
        for field, value in values.items():
            object.__setattr__(self, field, value)
        _check_term(self)

    @property
    def loss(self) -> Callable[..., Any]:
        """The loss as a function."""
        return find_loss(self.name)

    def __str__(self) -> str:
        return format_terms([self])

    def __repr__(self) -> str:
        return f"Term({format_terms([self])!r})"


class Miner(NamedTuple):
    """A function of `jaxmetric.mining`, and its options."""

    function: Callable[..., Any]
    options: Mapping[str, Any]


def parse_terms(expression: str) -> tuple[Term, ...]:
    """Reads an objective.

    Args:
      expression: a sum of terms, see above.

    Raises:
      ConfigError: if it is not such a sum, or a name or value in it does not fit; one line.

    Example:
      >>> [term.name for term in parse_terms("triplet(mining='hard') + 0.1*center")]
      ['triplet', 'center']
    """
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ConfigError(f"loss is {_shortened(expression)}, which is no expression: {reason}") from None
    return tuple(_term(part, expression) for part in _summands(tree))


def format_terms(terms: Iterable[Term]) -> str:
    """Writes terms as the expression that `parse_terms` reads.

    Example:
      >>> format_terms([Term("triplet"), Term("center", weight=0.5, on="color")])
      "triplet + 0.5*center(on='color')"
    """
    return " + ".join(_formatted(term) for term in terms)


def parse_miner(expression: str) -> Miner:
    """Reads the miner of a term, such as `"batch_hard"` or `"multi_similarity(epsilon=0.1)"`.

    Raises:
      ConfigError: if there is no such miner or option; one line.
    """
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ConfigError(f"pairs is {_shortened(expression)}, expected a miner such as 'batch_hard'") from None
    name, options = _call(tree, f"pairs is {_shortened(expression)}", "a miner such as 'batch_hard'")
    if name not in miner_names():
        raise ConfigError(f"pairs is {name!r}, but no miner has this name{nearest_or_all(name, miner_names())}")
    function = getattr(mining, name)
    known = miner_options(function)
    for option in options:
        if option not in known:
            raise ConfigError(f"{name} has no option {option!r}{nearest_or_all(option, known)}")
    distance = options.get("distance", "cosine")
    if distance not in get_args(DistanceName):
        names = ", ".join(map(repr, get_args(DistanceName)))
        raise ConfigError(f"pairs: distance of {name} is {distance!r}, expected one of {names}")
    return Miner(function, options)


@cache
def miner_options(function: Callable[..., Any]) -> tuple[str, ...]:
    """Returns the options of a miner in an expression."""
    known = inspect.signature(function).parameters
    own = [name for name, each in known.items() if each.kind is each.KEYWORD_ONLY and name not in _FILLED_IN_OF_MINERS]
    return tuple([*own, "distance"] if "distances" in known else own)


def miner_distance(function: Callable[..., Any]) -> str | None:
    """Returns the distance for which a miner is defined; None if it compares any, by default that of the loss."""
    return _DISTANCES.get(function)


@cache
def find_loss(name: str) -> Callable[..., Any]:
    """Returns an exported loss by its name without `_loss`.

    Raises:
      ConfigError: if there is none; the message names the nearest loss.
    """
    names = loss_names()
    if name not in names:
        known = name.removesuffix("_loss")
        hint = f"; leave out _loss: {known}" if known in names else nearest_or_all(name, names)
        raise ConfigError(f"no loss is called {name!r}{hint}; `jaxmetric losses` lists them")
    loss: Callable[..., Any] = getattr(losses, f"{name}_loss")
    return loss


@cache
def loss_names() -> tuple[str, ...]:
    """Returns the names of all exported losses, without `_loss`."""
    return tuple(name.removesuffix("_loss") for name in losses.__all__ if name.endswith("_loss"))


@cache
def miner_names() -> tuple[str, ...]:
    """Returns the names of the functions of `jaxmetric.mining` that select positive and negative pairs."""
    functions = inspect.getmembers(mining, inspect.isfunction)
    own = [(name, each) for name, each in functions if each.__module__ == mining.__name__ and not name.startswith("_")]
    masks = {"positives", "negatives"}
    return tuple(name for name, each in own if masks <= inspect.signature(each).parameters.keys())


@cache
def parameters(loss: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Returns the arguments of a loss by name."""
    return inspect.signature(loss).parameters


def class_vectors_of(loss: Callable[..., Any]) -> tuple[str, str] | None:
    """Returns name and shape of a loss's class vectors, such as `("centers", "[C, K, D]")`; None if it has none."""
    for name in ("centers", "proxies"):
        if name in parameters(loss) and (shape := declared_shape(loss, name)):
            return name, shape
    return None


def takes_columns(loss: Callable[..., Any]) -> bool:
    """Returns whether a loss orders or grades pairs by several columns of labels."""
    return declared_shape(loss, "labels") == "[B, T]"


def _summands(tree: ast.expr) -> list[ast.expr]:
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Add):
        return [*_summands(tree.left), *_summands(tree.right)]
    return [tree]


def _term(tree: ast.expr, expression: str) -> Term:
    weight: Any = 1.0
    what = f"loss has {_shortened(ast.unparse(tree))}"
    expected = "a number times the name of a loss with its options, such as 20*quadruplet(margin=0.3)"
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Mult):
        weight = _literal(tree.left, f"{what}, expected {expected}")
        tree = tree.right
    name, options = _call(tree, what, expected)
    if "weight" in options:
        before = f"{options['weight']}*{name}"
        raise ConfigError(f"{what}, which has an option weight; write the weight before the loss: {before}")
    if wrong := next(iter(_FIELDS & options.keys()), None):
        raise ConfigError(f"{name} has no option {wrong!r}")
    return Term(name, weight=weight, **options)


def _call(tree: ast.expr, what: str, expected: str) -> tuple[str, dict[str, Any]]:
    """Returns the name and the options of `name` or `name(option=literal, ...)`."""
    if isinstance(tree, ast.Name):
        return tree.id, {}
    if not (isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name)):
        raise ConfigError(f"{what}, expected {expected}")
    name = tree.func.id
    if tree.args or any(keyword.arg is None for keyword in tree.keywords):
        raise ConfigError(f"{what}, expected options by name, such as {name}(margin=0.3)")
    words = [keyword.arg for keyword in tree.keywords]
    if twice := next((word for word in words if words.count(word) > 1), None):
        raise ConfigError(f"{what}, which has {twice} twice")
    options = {}
    for keyword in tree.keywords:
        problem = f"{what}: {keyword.arg} is {_shortened(ast.unparse(keyword.value))}"
        options[str(keyword.arg)] = _literal(
            keyword.value, f"{problem}, expected a number, a word in quotes or a tuple"
        )
    return name, options


def _literal(tree: ast.expr, problem: str) -> Any:
    """Returns the value of a literal; raises ConfigError with the problem if it is none that an expression can hold."""
    try:
        return _plain(ast.literal_eval(tree), problem)
    except (ConfigError, ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise ConfigError(problem) from None


def _plain(value: Any, what: str) -> Any:
    """Returns a value that an expression can hold: a finite number, a word, None, or a tuple of these."""
    if isinstance(value, (np.generic, np.ndarray, jax.Array)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return tuple(_plain(each, what) for each in value)
    if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ConfigError(f"{what} is {_cut(repr(value))}, expected a finite number, a word or a tuple of these")


def _check_weight(name: str, weight: Any) -> float:
    number = _plain(weight, f"the weight of {name}")
    if not _is_number(number) or not 0 < number <= sys.float_info.max:
        raise ConfigError(f"the weight of {name} is {_cut(repr(number))}, expected a number above 0")
    return float(number)


def _names(name: str, option: str, value: Any) -> tuple[str, ...]:
    words = (value,) if isinstance(value, str) else _plain(value, f"{name}: {option}")
    if not isinstance(words, tuple) or not all(isinstance(word, str) and word for word in words):
        raise ConfigError(f"{name}: {option} is {value!r}, expected a name or a tuple of names")
    if len(set(words)) < len(words):
        raise ConfigError(f"{name}: {option} is {value!r}, which names one twice")
    return words


def _check_term(term: Term) -> None:
    loss = term.loss
    known = options_of(loss)
    for option, value in term.options:
        if option in FILLED_IN and option in parameters(loss):
            raise ConfigError(f"{term.name}: {option} is filled in by the objective; leave it out")
        if option not in known:
            raise ConfigError(
                f"{term.name} has no option {option!r}{nearest_or_all(option, [*known, *fields_for(loss)])}"
            )
        if option == "reduction" and value == "none":
            raise ConfigError(f"{term.name}: reduction is 'none', expected 'mean', 'mean_active' or 'sum'")
    given = dict(term.options)
    for option, parameter in known.items():
        if parameter.default is parameter.empty and option not in given:
            raise ConfigError(f"{term.name} needs {option}, as in {term.name}({option}=...)")
    _check_fields(term)


def _check_fields(term: Term) -> None:
    loss, vectors = term.loss, class_vectors_of(term.loss)
    if len(term.on) > 1 and not (takes_columns(loss) or vectors):
        raise ConfigError(f"{term.name}: on names {len(term.on)} columns, but this loss takes one")
    if _has_centers(loss) and not _is_count(term.centers_per_class, least=1):
        raise ConfigError(
            f"{term.name}: centers_per_class is {term.centers_per_class!r}, expected a whole number above 0"
        )
    if term.centers_per_class and not _has_centers(loss):
        raise ConfigError(f"{term.name} has no option 'centers_per_class': it has no centers [C, K, D]")
    if not isinstance(term.pairs, str):
        raise ConfigError(f"{term.name}: pairs is {term.pairs!r}, expected the name of a miner in quotes")
    if term.pairs:
        if "pairs" not in parameters(loss):
            raise ConfigError(f"{term.name} has no option 'pairs': it does not compare pairs")
        parse_miner(term.pairs)
    if not _is_count(term.memory, least=0):
        raise ConfigError(f"{term.name}: memory is {term.memory!r}, expected a whole number of embeddings")
    if term.memory and "references" not in parameters(loss):
        raise ConfigError(f"{term.name} has no option 'memory': it takes no references")
    for option in term.learn:
        if option not in learnable(loss):
            hint = nearest_or_all(option, learnable(loss))
            raise ConfigError(f"{term.name}: learn names {option!r}, which is not a number that it can learn{hint}")


def learnable(loss: Callable[..., Any]) -> tuple[str, ...]:
    """Returns the options of a loss that a run can learn: numbers that may have any value, or any above 0."""
    return tuple(name for name in options_of(loss) if declared_range(loss, name) in ("all", "> 0"))


def options_of(loss: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Returns the arguments of a loss that are options of a term."""
    return {name: parameter for name, parameter in parameters(loss).items() if name not in FILLED_IN}


def fields_for(loss: Callable[..., Any]) -> list[str]:
    """Returns the options of a term that are not options of its loss."""
    return [
        *("on", "learn"),
        *(["pairs"] if "pairs" in parameters(loss) else []),
        *(["memory"] if "references" in parameters(loss) else []),
        *(["centers_per_class"] if _has_centers(loss) else []),
    ]


def _has_centers(loss: Callable[..., Any]) -> bool:
    vectors = class_vectors_of(loss)
    return vectors is not None and vectors[1] == "[C, K, D]"


def _is_count(value: Any, *, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _formatted(term: Term) -> str:
    fields: dict[str, Any] = {
        "on": term.on[0] if len(term.on) == 1 else term.on,
        "pairs": term.pairs,
        "memory": term.memory,
        "learn": term.learn[0] if len(term.learn) == 1 else term.learn,
        "centers_per_class": term.centers_per_class,
    }
    options = {**dict(term.options), **{name: value for name, value in fields.items() if value}}
    weight = "" if term.weight == 1 else f"{_shortest(term.weight)}*"
    arguments = ", ".join(f"{name}={value!r}" for name, value in options.items())
    return f"{weight}{term.name}({arguments})" if arguments else f"{weight}{term.name}"


def _shortest(number: float) -> str:
    short = f"{number:g}"
    return short if float(short) == number else repr(number)


def _shortened(text: str) -> str:
    return repr(_cut(text))


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 80 else f"{line[:77]}..."
