"""A trained run with another list of images: for its evaluation only, so that the images it learned are not needed."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.config import Config, ConfigError, DataConfig
from experiments.setup import DATA_FILE, Experiment, load_source, make_experiment, split_off_groups
from jaxmetric.data import TEST
from jaxmetric.data.columns import find_columns, has_values
from jaxmetric.data.csv_table import read_table
from jaxmetric.data.problems import Problems
from jaxmetric.training import read_json


class _Header(NamedTuple):
    """Columns of a list: those with values that may be labels, those that are so by default, and if it is split."""

    names: list[str]
    labels: list[str]
    has_split: bool


def load_new_list(
    config: Config, workdir: Path, *, csv: str, image_root: str = "", exclude_same: str | None = None
) -> Experiment:
    """The network of a run with the images and labels of another list, which are matched to the run's by name.

    Codes are of the list alone: values that were never learned are as good as others for retrieval. Where the list has
    no split, all its images are test images. Columns that are missing or were not learned are told.

    Args:
      config: the run's.
      workdir: the run's.
      csv: the list.
      image_root: the folder that image names start from; the list's own if empty.
      exclude_same: see `DataConfig`; as in the run if None.

    Raises:
      ConfigError: if the list has not the column of the identity, or of `exclude_same`.
      ManifestError: if it cannot be read.
    """
    facts = workdir / DATA_FILE
    if not facts.exists():
        raise ConfigError(f"{workdir} has no {DATA_FILE}, which names the label columns of the run")
    trained, own, header = read_json(facts)["labels"], config.data, _read_header(Path(csv))
    same = own.exclude_same if exclude_same is None else exclude_same
    common = _match_columns(header, trained, same, csv)
    data = DataConfig(
        source="csv",
        csv=csv,
        image_root=image_root,
        columns=(*common, *([same] if same and same not in common else [])),
        ordinal=tuple(name for name in own.ordinal if name in common),
        split="given" if header.has_split else "within",
        skip_bad=own.skip_bad,
        memory=own.memory,
        stored_size=own.stored_size,
        resize=own.resize,
        exclude_same=same,
    )
    source = load_source(data, seed=config.seed)
    if not header.has_split:
        source = dataclasses.replace(source, split=np.full_like(source.split, TEST))
    source, groups = split_off_groups(source, dataclasses.replace(data, columns=tuple(common)))
    config = dataclasses.replace(config, data=dataclasses.replace(own, exclude_same=same))
    return make_experiment(config, source, groups, np.zeros(1, int))


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


def _match_columns(header: _Header, trained: Sequence[str], same: str, csv: str) -> list[str]:
    """The run's columns that the list has; tells the others."""
    there = ", ".join(header.names)
    common = [name for name in trained if name in header.names]
    if trained[0] not in common:
        raise ConfigError(f"{csv} has no column {trained[0]!r}, the identity of the run; it has {there}")
    if same and same not in header.names:
        raise ConfigError(
            f"exclude_same is {same!r}, but {csv} has {there}; name one of these, or give "
            '--exclude-same "" to leave out none'
        )
    missing = [name for name in trained if name not in common]
    unknown = [name for name in header.labels if name not in (*common, same)]
    notes = [f"it has no {', '.join(missing)}, which the run learned"] if missing else []
    notes += [f"{', '.join(unknown)} was not learned and is left out"] if unknown else []
    if notes:
        print(f"{csv}: {'; '.join(notes)}")
    return common
