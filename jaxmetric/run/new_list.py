"""Evaluates a trained run on another list of images, without its training images."""

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxmetric.data import LEARNING, TEST, LabelColumn, LabeledImages
from jaxmetric.data.columns import find_columns, has_values, read_splits
from jaxmetric.data.copies import first_of_same_file
from jaxmetric.data.csv_table import read_table
from jaxmetric.data.label_values import clean_values, encode_values
from jaxmetric.data.problems import ManifestError, Problems, counted
from jaxmetric.data.splits import split_disjoint_classes, split_within_classes
from jaxmetric.run.config import Config, DataConfig
from jaxmetric.run.errors import ConfigError
from jaxmetric.run.experiment import Experiment, make_experiment
from jaxmetric.run.objective import WeightedSum, objective
from jaxmetric.run.source import evaluated_split, load_source, split_off_groups
from jaxmetric.run.workdir import DATA_FILE, read_facts
from jaxmetric.training import read_json


class _Header(NamedTuple):
    """The columns of a list that could be labels, its default label columns, and whether it has a split."""

    names: list[str]
    labels: list[str]
    has_split: bool


def load_new_list(
    config: Config,
    workdir: Path,
    *,
    csv: str,
    image_root: str = "",
    skip_bad: bool = False,
    exclude_same: str | None = None,
) -> Experiment:
    """Returns the network of a run with the images of another list, whose label columns are matched by name.

    If no name matches exactly, case is ignored. Codes number the values of the new list; retrieval also works for
    values that were never learned. If the list has no split, all its images are test images. A message names the
    columns that are missing or were not learned.

    Args:
      config: the configuration of the run.
      workdir: the directory of the run.
      csv: the list.
      image_root: the folder that image names are relative to; the list's own if empty.
      skip_bad: skip rows and images that cannot be used; they are also skipped if the run did so.
      exclude_same: see `DataConfig`; as in the run if None.

    Raises:
      ConfigError: if the list lacks the column of the identity or of `exclude_same`, if `exclude_same` is the identity,
        or if fewer than two of its images are held out.
      ManifestError: if it cannot be read.
    """
    facts = workdir / DATA_FILE
    if not facts.exists():
        raise ConfigError(f"{workdir} has no {DATA_FILE}, which names the label columns of the run")
    trained, own, header = read_json(facts)["labels"], config.data, _read_header(Path(csv))
    same = own.exclude_same if exclude_same is None else exclude_same
    same = _find_name(same, trained) or same
    if same == trained[0]:
        raise ConfigError(f'exclude_same is {same!r}, the identity of the run; expected another column, or "" for none')
    named = _match_columns(header, trained, same, csv)
    common = [name for name in trained if name in named]
    data = DataConfig(
        source="csv",
        csv=csv,
        image_root=image_root,
        columns=tuple(named.values()),
        ordinal=tuple(named[name] for name in own.ordinal if name in common),
        split="given" if header.has_split else "within",
        skip_bad=skip_bad or own.skip_bad,
        memory=own.memory,
        stored_size=own.stored_size,
        resize=own.resize,
        exclude_same=same,
    )
    source = load_source(data, seed=config.seed)
    columns = tuple(dataclasses.replace(column, name=name) for column, name in zip(source.columns, named, strict=True))
    split = source.split if header.has_split else np.full_like(source.split, TEST)
    source = dataclasses.replace(source, columns=columns, split=split)
    _check_held_out(source, csv, header)
    source, groups = split_off_groups(source, dataclasses.replace(data, columns=tuple(common)))
    config = dataclasses.replace(config, data=dataclasses.replace(own, exclude_same=same))
    return make_experiment(config, source, groups, _objective_of_run(config, trained))


def _objective_of_run(config: Config, trained: Sequence[str]) -> WeightedSum:
    """Returns the objective of the run with one class per column; the checkpoint has the real numbers of classes."""
    columns = [LabelColumn(name, ("",), ordinal=name in config.data.ordinal) for name in trained]
    return objective(config.loss, columns, shard_classes=config.classes.shard_classes)


def warn_of_learned(config: Config, workdir: Path, csv: str, files: Sequence[Path]) -> None:
    """Warns if images of another list were learning images of the run, or if that cannot be checked.

    Args:
      config: the configuration of the run.
      workdir: the directory of the run.
      csv: the other list.
      files: its evaluated images.
    """
    if config.data.source != "csv":
        return
    try:
        learned = _learning_files(config, workdir)
    except (ManifestError, OSError):
        learned = None
    if learned is None:
        warnings.warn(
            f"{config.data.csv}, the list of the run, is not as it was: whether images of {csv} were learned could not "
            "be checked",
            stacklevel=2,
        )
        return
    known = len(learned)
    again = sum(first < known for first in first_of_same_file([*learned, *files])[known:])
    if again:
        warnings.warn(
            f"{again:,} of the {counted(len(files), 'image')} of {csv} to evaluate {'is a' if again == 1 else 'are'} "
            f"learning image{'s' * (again != 1)} of the run, and not held out: figures are better than on new images",
            stacklevel=2,
        )


def _learning_files(config: Config, workdir: Path) -> list[Path] | None:
    """Returns the learning images of a run from its list; None if the list can no longer be used for that."""
    data, problems = config.data, Problems(config.data.csv)
    table = read_table(Path(data.csv), problems)
    extra = (data.exclude_same,) if data.exclude_same and data.exclude_same not in data.columns else ()
    columns = find_columns(table, (*data.columns, *extra) if data.columns else None, problems)
    names = [row[columns.image] for row in table.rows]
    split = read_splits(table, columns, problems)
    if split is None:
        identity = columns.names[columns.labels[0]]
        cells = clean_values([identity], [(row[columns.labels[0]],) for row in table.rows], problems)
        labels, _ = encode_values([identity], cells, (), problems)
        make = split_disjoint_classes if data.split == "disjoint" else split_within_classes
        split = make(labels[:, 0], seed=config.seed)
        if read_facts(workdir / DATA_FILE)["images"] != len(names):
            return None
    root = Path(data.image_root or Path(data.csv).parent)
    return [root / name for name, code in zip(names, split, strict=True) if code == LEARNING]


def _check_held_out(source: LabeledImages, csv: str, header: _Header) -> None:
    """Raises ConfigError, with a cure, if a list has nothing to evaluate."""
    try:
        evaluated_split(source)
    except ConfigError as error:
        cure = "leave its split column out to evaluate all images" if header.has_split else "give more images"
        raise ConfigError(f"{csv}: {error}; {cure}") from error


def _read_header(path: Path) -> _Header:
    problems = Problems(path)
    table = read_table(path, problems)
    columns = find_columns(table, None, problems)
    of_no_label = {columns.image, columns.split, *columns.flags}
    return _Header(
        [
            name
            for place, name in enumerate(columns.names)
            if name and place not in of_no_label and has_values(table, place)
        ],
        [columns.names[place] for place in columns.labels],
        columns.split is not None or bool(columns.flags),
    )


def _match_columns(header: _Header, trained: Sequence[str], same: str, csv: str) -> dict[str, str]:
    """Maps the label names of the run to columns of the list, `exclude_same` last, and prints the differences."""
    there = ", ".join(header.names)
    named = {name: found for name in trained if (found := _find_name(name, header.names))}
    if trained[0] not in named:
        raise ConfigError(
            f"{csv} has no column {trained[0]!r}, the identity of the run; it has {there}; rename the column of the "
            f"identity to {trained[0]!r} in its header"
        )
    found = _find_name(same, header.names)
    if same and not found:
        raise ConfigError(
            f"exclude_same is {same!r}, but {csv} has {there}; name one of these, or give "
            '--exclude-same "" to leave out none'
        )
    missing = [name for name in trained if name not in named]
    if found:
        named.setdefault(same, found)
    unknown = [name for name in header.labels if name not in named.values()]
    notes = [f"it has no {', '.join(missing)}, which the run learned"] if missing else []
    notes += [f"{', '.join(unknown)} was not learned and is left out"] if unknown else []
    notes += [f"its column {other!r} is taken as {name!r}" for name, other in named.items() if name != other]
    if notes:
        print(f"{csv}: {'; '.join(notes)}")
    return named


def _find_name(name: str, names: Sequence[str]) -> str | None:
    """Finds a name among others: the same name, or else the only one that differs just in case."""
    alike = [other for other in names if other.casefold() == name.casefold()]
    return name if name in names else alike[0] if len(alike) == 1 else None
