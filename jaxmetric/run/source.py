"""Loads the images and labels of a configuration: their source, the learned labels and the held-out images."""

import dataclasses

import numpy as np

from jaxmetric.data import (
    LEARNING,
    QUERY,
    SPLITS,
    TEST,
    VALIDATION,
    LabeledImages,
    load_emoji_people,
    load_manifest,
    load_tfds,
)
from jaxmetric.data.problems import counted
from jaxmetric.data.splits import split_disjoint_classes, split_within_classes
from jaxmetric.run.config import Config, DataConfig
from jaxmetric.run.errors import ConfigError


def load_labels(data: DataConfig, *, seed: int) -> tuple[LabeledImages, np.ndarray | None]:
    """Loads the images with the labels to learn, and the content of `Experiment.groups`."""
    name = data.exclude_same
    extra = (name,) if name and data.columns and name not in data.columns else ()
    source = load_source(dataclasses.replace(data, columns=(*data.columns, *extra)), seed=seed)
    return split_off_groups(source, data)


def split_off_groups(source: LabeledImages, data: DataConfig) -> tuple[LabeledImages, np.ndarray | None]:
    """Separates the column that `exclude_same` names from the labels to learn, unless `columns` names it too.

    Returns:
      The images with the other labels, and the content of `Experiment.groups`.

    Raises:
      ConfigError: if there is no such column besides the identity.
    """
    name, names = data.exclude_same, [column.name for column in source.columns]
    if not name:
        return source, None
    if name not in names[1:]:
        raise ConfigError(f"exclude_same is {name!r}, expected a column beside the identity, of {', '.join(names)}")
    groups = source.labels[:, [0, names.index(name)]]
    kept = [t for t, other in enumerate(names) if other != name or name in data.columns]
    columns = tuple(source.columns[t] for t in kept)
    return dataclasses.replace(source, labels=source.labels[:, kept], columns=columns), groups


def load_source(data: DataConfig, *, seed: int) -> LabeledImages:
    """Loads the images and labels that a configuration names."""
    if data.source == "emoji_people":
        if data.split == "given":
            raise ConfigError("split is given, but emoji_people has none of its own; expected within or disjoint")
        columns = {"columns": data.columns} if data.columns else {}
        return load_emoji_people(data.split, seed=seed, size=data.stored_size, **columns)
    if data.source == "csv":
        return load_manifest(
            data.csv,
            root=data.image_root or None,
            image_size=data.stored_size,
            resize=data.resize,
            columns=data.columns or None,
            ordinal=data.ordinal,
            memory_budget=data.memory * 2**20,
            skip_bad=data.skip_bad,
            split=data.split,
            seed=seed,
        )
    return load_tfds(
        data.tfds_name,
        data_dir=data.tfds_dir or None,
        label_keys=data.columns,
        split=data.split,
        image_size=data.stored_size,
        resize=data.resize,
        seed=seed,
    )


def learned_classes(source: LabeledImages) -> list[np.ndarray]:
    """Returns for each label column the codes of learning images, ascending; class c of a loss is entry c."""
    return [np.unique(codes[codes >= 0]) for codes in source.labels[source.split == LEARNING].T]


def evaluated_split(source: LabeledImages) -> int:
    """Returns the split to evaluate: queries; else test; else validation if fewer than two images are test images.

    Raises:
      ConfigError: if there are queries but no gallery or the reverse, or fewer than two images are held out.
    """
    counts = split_sizes(source)
    if bool(counts["query"]) != bool(counts["gallery"]):
        there, missing = ("query", "gallery") if counts["query"] else ("gallery", "query")
        raise ConfigError(
            f"{counted(counts[there], 'image has', 'images have')} the split {there}, "
            f"but none has the split {missing}: a query is searched "
            f"in the gallery; name both, or call them test"
        )
    if counts["query"]:
        return QUERY
    for split in (TEST, VALIDATION):
        if counts[SPLITS[split]] > 1:
            return split
    raise ConfigError(
        f"fewer than two images are held out for test, fewer than two for validation, and none as query and gallery "
        f"({described_splits(source)}): there is nothing to compare"
    )


def has_own_split(config: Config, source: LabeledImages) -> bool:
    """Returns whether a list has its own split, instead of one made by `split`."""
    data = config.data
    if data.source != "csv":
        return False
    made_by = {"within": split_within_classes, "disjoint": split_disjoint_classes}.get(data.split)
    return made_by is None or not np.array_equal(source.split, made_by(source.labels[:, 0], seed=config.seed))


def split_sizes(source: LabeledImages) -> dict[str, int]:
    """Returns the number of images of each split by name."""
    return {name: int((source.split == code).sum()) for code, name in enumerate(SPLITS)}


def described_splits(source: LabeledImages) -> str:
    """Describes the splits that have images, as `8 learning, 2 test`."""
    return ", ".join(f"{size:,} {name}" for name, size in split_sizes(source).items() if size)


def check_learning(config: Config, source: LabeledImages) -> None:
    """Raises ConfigError if there is nothing to learn from."""
    if (source.split == LEARNING).any():
        return
    data = config.data
    of_list, new = (f"{data.csv} has", f" --csv {data.csv}") if data.source == "csv" else ("the data set has", "")
    hint = f"; to evaluate a trained run on it: jaxmetric evaluate --workdir RUN{new}" if new else ""
    raise ConfigError(
        f"{of_list} no learning images ({described_splits(source)}); to train, give some rows the split learning{hint}"
    )


def check_held_out(config: Config, source: LabeledImages) -> None:
    """Raises ConfigError, with a cure, if there is nothing to evaluate."""
    try:
        evaluated_split(source)
    except ConfigError as error:
        if (source.split >= QUERY).any():
            raise
        cure = (
            "give two rows or more the split test, or leave the split column out"
            if has_own_split(config, source)
            else "give more images, a split column with two rows or more of test, or "
            f"--split {'within' if config.data.split == 'disjoint' else 'disjoint'}"
        )
        raise ConfigError(f"{error}; {cure}") from error
