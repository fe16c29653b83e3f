"""List the losses with their options and defaults, or explain one.

    jaxmetric losses [NAME]

A loss is named without `_loss`, as in `--loss "20*quadruplet(margin=0.3) + soft_triple()"`. The command needs only jax
and numpy.
"""

import argparse
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxmetric.run.names import did_you_mean
from jaxmetric.run.terms import find_loss, loss_names, parameters

_WIDTH = 100
_SHARED = ("where", "weights", "reduction", "has_aux")  # options of every loss
_BATCH = ("embeddings", "labels", "other")  # arguments that come from the batch


def main(argv: Sequence[str] | None = None, *, program: str = "jaxmetric losses") -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog=program, description="List the losses, or explain one.")
    parser.add_argument("name", nargs="?", help="the loss to explain, such as quadruplet")
    name = parser.parse_args(argv).name
    losses = {name: find_loss(name) for name in loss_names()}
    if name is None:
        print(listed(losses))
        return 0
    if name.removesuffix("_loss") not in losses:
        print(f"error: no loss is called {name!r}{did_you_mean(name, losses)}; {program} lists all", file=sys.stderr)
        return 1
    print(explained(losses[name.removesuffix("_loss")]))
    return 0


def listed(losses: dict[str, Callable[..., Any]]) -> str:
    """Returns the list that the command prints, with one family per file of `jaxmetric.losses`."""
    families: dict[str, list[str]] = {}
    for name, loss in losses.items():
        family = loss.__module__.rpartition(".")[2].replace("_", " ")
        families.setdefault(family, []).append(_wrapped(f"{name}({', '.join(_options(loss))})"))
    first = next(iter(losses.values()))
    shared = ", ".join(f"{name}={parameters(first)[name].default!r}" for name in _SHARED)
    head = (
        f"Every loss has the options {shared}.\n"
        "An option without a default must be given. Training creates and learns centers and proxies itself."
    )
    return "\n\n".join([head, *("\n".join([family, *families[family]]) for family in sorted(families))])


def explained(loss: Callable[..., Any]) -> str:
    """Returns the description of one loss: what it computes, and its arguments with their defaults."""
    summary, *_ = (inspect.getdoc(loss) or "").split("\n\n")
    lines = [f"{loss.__module__}.{loss.__name__}", "", *textwrap.wrap(" ".join(summary.split()), _WIDTH), ""]
    meanings = dict(_documented_arguments(loss))
    for name, parameter in parameters(loss).items():
        lines.append(f"  {_with_default(name, parameter)}")
        lines += textwrap.wrap(meanings.get(name, ""), _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _options(loss: Callable[..., Any]) -> list[str]:
    return [
        _with_default(name, parameter)
        for name, parameter in parameters(loss).items()
        if name not in (*_SHARED, *_BATCH)
    ]


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
