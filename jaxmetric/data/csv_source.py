"""Reads a CSV list of images: `load_manifest`.

The header names the image column, the label columns with the identity first, and optionally the split:

    image,identity,gender,age,split
    a/1.jpg,ann,female,31,learning
    a/2.jpg,ann,,31,test

The separator may also be a semicolon, a tab, a bar or spaces. The image column may be called path, filename and so
on, and the split set, partition, is_train and so on (see `csv_table` and `columns`). Empty labels, NA, nan and the
other words that pandas reads as missing are missing; -1 is a value. The split is learning (or train), validation (or
val), test, query or gallery, or 0, 1, 2. OML's columns is_query and is_gallery are supported. Without a split column,
a seed splits the images. Without a header, only the format of the authors of the quadruplet loss is read:
`filename, class_1, ..., class_T, split` with split 0 learning, 1 validation, 2 test.

All images are decoded once before training begins. All problems are raised together, one line each with the file and
its line; `skip_bad` skips and counts them instead. Each assumption is a `SourceWarning` of one line, and
`describe(source)` says how the file was read.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from jaxmetric.data.columns import Columns, find_columns, read_splits
from jaxmetric.data.copies import content_keys, copies_across_splits, first_of_same_file
from jaxmetric.data.csv_table import SEPARATORS, CsvTable, is_whole, read_table
from jaxmetric.data.decoding import LazyImages, Resize, check_resize, try_images
from jaxmetric.data.image_files import image_file, spelled_out
from jaxmetric.data.label_values import clean_values, encode_values, note_values, whole_number_cure
from jaxmetric.data.labeled_images import ImageError, LabeledImages, SourceWarning
from jaxmetric.data.problems import ManifestError, ManifestWarning, Problems
from jaxmetric.data.splits import split_disjoint_classes, split_within_classes

__all__ = ["ManifestError", "ManifestWarning", "load_manifest"]


@dataclass(frozen=True)
class _Rows:
    """The rows of a list whose columns are known; missing labels are ""."""

    columns: tuple[str, ...]
    lines: list[int]
    images: list[str]
    labels: list[tuple[str, ...]]
    splits: np.ndarray | None

    def take(self, rows: Sequence[int]) -> "_Rows":
        return _Rows(
            self.columns,
            [self.lines[i] for i in rows],
            [self.images[i] for i in rows],
            [self.labels[i] for i in rows],
            None if self.splits is None else self.splits[rows],
        )


def load_manifest(
    path: str | Path,
    *,
    root: str | Path | None = None,
    image_size: int = 64,
    resize: Resize = "crop",
    columns: Sequence[str] | None = None,
    ordinal: Sequence[str] = (),
    skip_bad: bool = False,
    split: Literal["given", "within", "disjoint"] = "within",
    seed: int = 0,
    memory_budget: int = 1 << 30,
) -> LabeledImages:
    """Reads the images listed in a CSV file. The module's docstring describes the formats.

    Codes number the sorted values, in numerical order if all values of a column are numbers. The codes of an ordinal
    column run from its smallest to its largest integer without gaps, so that |a - b| is the same for codes and
    values.

    Args:
      path: the CSV file, UTF-8.
      root: the folder that image names are relative to; the file's own by default.
      image_size: the side S of the images.
      resize: "crop" (scale the short side to S, crop the center) or "squash" (scale both sides to S).
      columns: the label columns to use, identity first; all by default, except an unnamed index and a column such as
        `image_id` that numbers the rows. In a file without a header they are called class_1 ... class_T.
      ordinal: the columns whose values are ordered integers; 31.0 is 31.
      skip_bad: skip bad rows, with a `ManifestWarning` that counts them, instead of raising.
      split: how to split if the file has no split: hold out images of every class ("within") or whole classes
        ("disjoint"); "given" refuses such a file.
      seed: seed of that split.
      memory_budget: bytes that decoded images may use. If they need more, they are decoded on each access.

    Returns:
      The images, labels and split; names are the file names as written. There may be no learning images, as in a
      list of test images.

    Raises:
      ManifestError: for missing, unreadable or truncated images, ragged rows, images that are listed twice (also as two
        names of one file), a split or an ordinal value that cannot be read. Regardless of `skip_bad`: for a missing or
        empty file, a header without an image column, unknown columns, or no label column.
      ValueError: if an argument is out of range.

    Warns:
      SourceWarning: for each assumption, omission and doubtful value, in one line: missing words, an index column, a
        file without a header, identities with a single image, -1 as a value, a column with fewer than two values,
        copies of an image in different splits.
      ManifestWarning: for rows that `skip_bad` skipped.
    """
    path = Path(path)
    check_resize(image_size, resize)
    if split not in ("given", "within", "disjoint"):
        raise ValueError(f"split must be 'given', 'within' or 'disjoint', got {split!r}")
    _check_names(columns)
    root = path.parent if root is None else Path(root)
    problems = Problems(path)
    table = read_table(path, problems)
    places = find_columns(table, columns, problems)
    rows = _rows(table, places, problems)
    if split == "given" and rows.splits is None:
        raise problems.refusal("split is 'given', but the file has no column 'split'; expected within or disjoint")
    ordinal_places = _ordinal_places(rows, ordinal, problems)

    _find_bad_cells(rows, ordinal_places, problems)
    _find_repeated_images(rows, root, problems)
    pixels = _decode(_images(rows, root, image_size, resize), rows, problems, memory_budget)

    if problems.bad_lines and not skip_bad:
        raise problems.error()
    good = [i for i, line in enumerate(rows.lines) if line not in problems.bad_lines]
    if problems.bad_lines:
        warnings.warn(ManifestWarning(len(problems.bad_lines), problems.lines()), stacklevel=2)
    if not good:
        raise ManifestError([f"{path}: no row is left"])

    rows = rows.take(good)
    note_values(rows.columns, rows.labels, ordinal_places, problems)
    labels, described = encode_values(rows.columns, rows.labels, ordinal_places, problems)
    source = LabeledImages(
        images=_images(rows, root, image_size, resize) if pixels is None else pixels[good],
        labels=labels,
        columns=described,
        split=_split(rows, labels, split, seed),
        names=tuple(rows.images),
        origin=_origin(table, places),
    )
    copies = copies_across_splits(
        content_keys([image_file(root, image) for image in rows.images]), source.split, source.names
    )
    if copies:
        problems.note(copies)
    for note in problems.notes:
        warnings.warn(SourceWarning(note), stacklevel=2)
    return source


def _check_names(columns: Sequence[str] | None) -> None:
    if columns is None:
        return
    if isinstance(columns, str) or not columns:
        raise ValueError(f"columns must name at least one label column, got {columns!r}")
    if len(set(columns)) != len(columns):
        raise ValueError(f"columns must differ, got {tuple(columns)}")


def _rows(table: CsvTable, places: Columns, problems: Problems) -> _Rows:
    names = tuple(places.names[place] for place in places.labels)
    cells = [tuple(row[place] for place in places.labels) for row in table.rows]
    return _Rows(
        columns=names,
        lines=table.lines,
        images=[row[places.image] for row in table.rows],
        labels=clean_values(names, cells, problems),
        splits=read_splits(table, places, problems),
    )


def _origin(table: CsvTable, places: Columns) -> str:
    split = [repr(places.names[place]) for place in (places.split, *places.flags) if place is not None]
    facts = [
        f"separator {SEPARATORS[table.separator]}",
        *["no header"] * (not table.header),
        f"images in {places.names[places.image]!r}",
        *[f"split in {' and '.join(split)}"] * bool(split),
    ]
    return "; ".join(facts)


def _ordinal_places(rows: _Rows, ordinal: Sequence[str], problems: Problems) -> set[int]:
    unknown = [name for name in ordinal if name not in rows.columns]
    if unknown:
        raise problems.refusal(
            f"ordinal names {unknown[0]!r}, but the label columns in use are {', '.join(rows.columns)}"
        )
    places = {rows.columns.index(name) for name in ordinal}
    for place in sorted(places):
        values = {row[place] for row in rows.labels if row[place]}
        if values and not any(map(is_whole, values)):
            name = rows.columns[place]
            value = min(values)
            raise problems.refusal(
                f"ordinal column {name!r} must hold integers, but no value is one, such as {value!r}; "
                + whole_number_cure(value)
            )
    return places


def _find_bad_cells(rows: _Rows, ordinal_places: set[int], problems: Problems) -> None:
    for line, labels in zip(rows.lines, rows.labels, strict=True):
        for place in ordinal_places:
            value = labels[place]
            if value and not is_whole(value):
                what = f"ordinal column {rows.columns[place]!r} must hold integers, got {value!r}"
                problems.add(line, f"{what}; {whole_number_cure(value)}")


def _find_repeated_images(rows: _Rows, root: Path, problems: Problems) -> None:
    for i, first in enumerate(first_of_same_file([image_file(root, image) for image in rows.images])):
        line, image = rows.lines[first], rows.images[first]
        if first == i or not image:
            continue
        if image == rows.images[i]:
            problems.add(rows.lines[i], f"{image} is already listed on line {line}")
        else:
            problems.add(rows.lines[i], f"{rows.images[i]} is the same file as {image}, which is listed on line {line}")


def _images(rows: _Rows, root: Path, image_size: int, resize: Resize) -> LazyImages:
    return LazyImages(partial(_listed_file, root, rows.images), rows.images, image_size=image_size, resize=resize)


def _listed_file(root: Path, images: Sequence[str], index: int) -> Path:
    return image_file(root, images[index])


def _decode(images: LazyImages, rows: _Rows, problems: Problems, memory_budget: int) -> np.ndarray | None:
    """Decodes every image to find bad ones; returns all images `[N, S, S, 3]` if they fit the budget."""
    kept: np.ndarray | None = None
    for i, image in enumerate(try_images(images)):
        if isinstance(image, ImageError):
            problems.add(rows.lines[i], _unreadable(rows.images[i], image))
            continue
        if kept is None and image.nbytes * len(images) <= memory_budget:
            kept = np.zeros((len(images), *image.shape), np.uint8)
        if kept is not None:
            kept[i] = image
    return kept


def _unreadable(image: str, error: ImageError) -> str:
    if not image:
        return "no image is named"
    if "\\" in image:
        return f"{error} (its name has backslashes; write /)"
    return f"{error}{spelled_out(image)}" if "no such file" in str(error) else str(error)


def _split(rows: _Rows, labels: np.ndarray, split: str, seed: int) -> np.ndarray:
    if rows.splits is not None:
        return rows.splits
    function = split_within_classes if split == "within" else split_disjoint_classes
    return function(labels[:, 0], seed=seed)
