"""Print mean and spread of evaluated runs that differ in their seed, one column per group of runs.

    jaxmetric compare --runs seeds=runs/a-0,runs/a-1,runs/a-2 other=runs/b-0,runs/b-1

Each argument is a title and the working directories of a group. The spread is the standard deviation over the group
(with n - 1). The objective of each group is printed below the table.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from jaxmetric.run.config import CONFIG_FILE
from jaxmetric.run.console import run_command
from jaxmetric.run.errors import ConfigError
from jaxmetric.run.evaluate import EVALUATION_FILE
from jaxmetric.training import read_json


def read_figures(workdir: Path) -> dict[str, float | None]:
    """Returns the figures of one run, trained and untrained.

    Raises:
      ConfigError: if the run was not evaluated.
    """
    path = workdir / EVALUATION_FILE
    if not path.exists():
        raise ConfigError(f"{workdir} holds no {EVALUATION_FILE}; run jaxmetric evaluate --workdir {workdir}")
    evaluation = read_json(path)
    untrained = {f"{name}, untrained": value for name, value in _figures(evaluation["untrained"]).items()}
    return {**_figures(evaluation), **untrained}


def table(groups: Mapping[str, Sequence[Mapping[str, float | None]]]) -> str:
    """Formats figures as text, with one row per figure and one column per group."""
    names = list(dict.fromkeys(name for runs in groups.values() for run in runs for name in run))
    rows = [["", *(f"{title} ({len(runs)})" for title, runs in groups.items())]]
    rows += [[name, *(_spread([run.get(name) for run in runs]) for runs in groups.values())] for name in names]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )


def _figures(evaluation: Mapping[str, Any]) -> dict[str, float | None]:
    recall = {f"{name} Recall@1": column["recall"]["1"] for name, column in evaluation["columns"].items()}
    joint, coherence = evaluation["joint"]["all_correct"], evaluation["coherence"]["spearman"]
    return {**recall, "all labels right": joint, "coherence": coherence}


def _spread(values: Sequence[float | None]) -> str:
    defined = [value for value in values if value is not None]
    if len(defined) < len(values) or not defined:
        return "undefined"
    mean = f"{statistics.mean(defined):.3f}"
    return f"{mean} ± {statistics.stdev(defined):.3f}" if len(defined) > 1 else mean


def main(argv: Sequence[str] | None = None, *, program: str = "jaxmetric compare") -> int:
    """Runs the command line; returns the exit code."""

    def command(runs: list[str]) -> list[str]:
        """Compares evaluated runs.

        Args:
            runs: Groups of runs, each TITLE=DIR,DIR,...
        """
        return runs

    words = tyro.cli(command, args=argv, prog=program, description=__doc__)
    return run_command(lambda: print(_comparison(_read_groups(words))))


def _comparison(groups: Mapping[str, Sequence[Path]]) -> str:
    figures = {title: [read_figures(workdir) for workdir in workdirs] for title, workdirs in groups.items()}
    objectives = [f"{title}: {loss}" for title, workdirs in groups.items() for loss in _objectives(workdirs)]
    return "\n".join([table(figures), *objectives])


def _objectives(workdirs: Sequence[Path]) -> list[str]:
    """Returns the distinct objectives of runs, as written in `config.json`."""
    files = [workdir / CONFIG_FILE for workdir in workdirs]
    return list(dict.fromkeys(str(read_json(file).get("loss")) for file in files if file.exists()))


def _read_groups(words: Sequence[str]) -> dict[str, list[Path]]:
    if not words:
        raise ConfigError("runs is empty, expected TITLE=DIR,DIR,...")
    groups: dict[str, list[Path]] = {}
    for word in words:
        title, separator, directories = word.partition("=")
        if not (title and separator and directories):
            raise ConfigError(f"runs has {word!r}, expected TITLE=DIR,DIR,...")
        if title in groups:
            raise ConfigError(f"runs has two groups called {title!r}, expected each group once")
        named = directories.split(",")
        if "" in named or len(set(named)) < len(named):
            raise ConfigError(f"runs has {word!r}, expected TITLE=DIR,DIR,... with each directory once, without spaces")
        groups[title] = [Path(directory) for directory in named]
    return groups
