"""List the losses and miners that an objective can name, with their options and defaults, or explain one.

    jaxmetric losses [NAME]

A loss is named without `_loss`, as in `--loss "20*quadruplet(margin=0.3) + soft_triple()"`. The command needs only jax
and numpy.
"""

import argparse
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jaxmetric import mining
from jaxmetric.run.names import did_you_mean
from jaxmetric.run.terms import (
    DEFAULT_CENTERS,
    fields_for,
    find_loss,
    loss_names,
    miner_distance,
    miner_names,
    miner_options,
    options_of,
    parameters,
)

_WIDTH = 100
_EVERY = ("on", "learn", "reduction")  # options of every term
_FIELDS = {
    "on": "the label columns, a name or a tuple of names; by default those that the loss compares",
    "learn": "options that the run learns, a name or a tuple of names, starting from their values",
    "pairs": "the miner that selects the pairs to compare, such as 'multi_similarity(epsilon=0.1)'; all if empty",
    "memory": "the number of past embeddings that the batch is also compared with",
    "centers_per_class": "K, the number of centers of each class",
}
_DEFAULTS = {"on": (), "learn": (), "pairs": "", "memory": 0, "centers_per_class": DEFAULT_CENTERS}


def main(argv: Sequence[str] | None = None, *, program: str = "jaxmetric losses") -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog=program, description="List the losses and miners, or explain one.")
    parser.add_argument("name", nargs="?", help="the loss or miner to explain, such as quadruplet")
    name = parser.parse_args(argv).name
    losses = {name: find_loss(name) for name in loss_names()}
    miners = {name: getattr(mining, name) for name in miner_names()}
    if name is None:
        print(listed(losses, miners))
        return 0
    loss, miner = (known.get(name.removesuffix("_loss")) for known in (losses, miners))
    if not (loss or miner):
        known = [*losses, *miners]
        print(f"error: no loss is called {name!r}{did_you_mean(name, known)}; {program} lists all", file=sys.stderr)
        return 1
    print("\n\n".join([*([explained(loss)] if loss else []), *([explained_miner(miner)] if miner else [])]))
    return 0


def listed(losses: Mapping[str, Callable[..., Any]], miners: Mapping[str, Callable[..., Any]]) -> str:
    """Returns the list that the command prints, with one family per file of `jaxmetric.losses`."""
    families: dict[str, list[str]] = {}
    for name, loss in losses.items():
        family = loss.__module__.rpartition(".")[2].replace("_", " ")
        options = [option for option in _options_of_term(loss) if option.partition("=")[0] not in _EVERY]
        families.setdefault(family, []).append(_wrapped(f"{name}({', '.join(options)})"))
    head = (
        'An objective is a sum of terms, as in --loss "20*quadruplet(margin=0.3) + 2.5*soft_triple".\n'
        "Every term also has the options on=(), learn=() and reduction='mean'. An option without a default\n"
        "must be given. A run creates and learns centers and proxies itself."
    )
    lists = [*("\n".join([family, *families[family]]) for family in sorted(families))]
    rows = [_wrapped(f"{name}({', '.join(_options_of_miner(miner))})") for name, miner in miners.items()]
    return "\n\n".join([head, *lists, "\n".join(["miners, for pairs=", *rows])])


def explained(loss: Callable[..., Any]) -> str:
    """Returns the description of one loss: what it computes, and the options of its term with their defaults."""
    meanings = dict(_documented_arguments(loss)) | {name: _FIELDS[name] for name in fields_for(loss)}
    options = _options_of_term(loss)
    filled_in = [name for name in parameters(loss) if name not in (*options_of(loss), *fields_for(loss))]
    in_python = _described(filled_in, dict(_documented_arguments(loss)))
    return "\n".join([*_summary(loss), *_described(options, meanings), "", "what a run fills in:", "", *in_python])


def explained_miner(miner: Callable[..., Any]) -> str:
    """Returns the description of one miner: what it keeps, and its options in an expression with their defaults."""
    meanings = {
        **dict(_documented_arguments(miner)),
        "distance": "the name of the distance that it compares",
    }
    return "\n".join([*_summary(miner), *_described(_options_of_miner(miner), meanings)])


def _summary(function: Callable[..., Any]) -> list[str]:
    summary, *_ = (inspect.getdoc(function) or "").split("\n\n")
    return [f"{function.__module__}.{function.__name__}", "", *textwrap.wrap(" ".join(summary.split()), _WIDTH), ""]


def _described(options: Sequence[str], meanings: Mapping[str, str]) -> list[str]:
    lines = []
    for option in options:
        text = meanings.get(option.partition("=")[0], "")
        lines += [f"  {option}", *textwrap.wrap(text, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)]
    return lines


def _options_of_term(loss: Callable[..., Any]) -> list[str]:
    own = [_with_default(name, parameter) for name, parameter in options_of(loss).items()]
    return [*own, *(f"{name}={_DEFAULTS[name]!r}" for name in fields_for(loss))]


def _options_of_miner(miner: Callable[..., Any]) -> list[str]:
    known = inspect.signature(miner).parameters
    default = repr(miner_distance(miner)) if miner_distance(miner) else "that of the loss"
    return [_with_default(name, known[name]) if name in known else f"{name}={default}" for name in miner_options(miner)]


def _with_default(name: str, parameter: inspect.Parameter) -> str:
    return name if parameter.default is parameter.empty else f"{name}={parameter.default!r}"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent="  ", subsequent_indent=" " * 6, break_on_hyphens=False)


def _documented_arguments(loss: Callable[..., Any]) -> Iterator[tuple[str, str]]:
    """Yields the names and texts of the section `Args:` of a docstring."""
    section = (inspect.getdoc(loss) or "").partition("\nArgs:\n")[2].partition("\n\n")[0]
    for entry in re.split(r"^  (?=\w)", section, flags=re.MULTILINE)[1:]:
        name, _, text = entry.partition(": ")
        yield name, " ".join(text.split())
