"""A CSV list of anybody's own pictures: `load_manifest`.

Two formats are told apart by their first line. A header names a column `image`:

    image,identity,gender,age,split
    a/1.jpg,ann,female,31,learning
    a/2.jpg,ann,,31,test

An empty label is missing; the split is learning (or train), validation (or val), test, or 0, 1, 2; without a
column `split` the pictures are split by a seed. Without a header, as the authors of the quadruplet loss
published theirs: `filename, class_1, ..., class_T, split` with split 0 learning, 1 validation, 2 test.

All pictures are decoded once before training begins. Whatever is wrong is gathered and raised together, one
line per problem with the file and its line, or left out and counted under `skip_bad`.
"""

import csv
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxmetric.data.pictures import LazyPictures, Resize, check_resize, try_pictures
from jaxmetric.data.sources import LEARNING, LabelColumn, LabelledImages, PictureError
from jaxmetric.data.splits import split_disjoint_classes, split_within_classes

_IMAGE, _SPLIT = "image", "split"
_SPLIT_WORDS = {
    **{"0": 0, "learning": 0, "learn": 0, "train": 0, "training": 0},
    **{"1": 1, "validation": 1, "valid": 1, "val": 1},
    **{"2": 2, "test": 2, "testing": 2},
    **{"query": 3, "gallery": 4},
}
_PROBLEMS_SHOWN = 10
_MAX_ORDINAL_RANGE = 100_000


class ManifestError(ValueError):
    """What is wrong with a manifest, one line per problem.

    Attributes:
      problems: all of them; the message shows the first ten.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(_listed(problems))
        self.problems = tuple(problems)


class ManifestWarning(UserWarning):
    """Rows that `skip_bad` left out; `problems` says which and why."""

    def __init__(self, rows: int, problems: Sequence[str]) -> None:
        super().__init__(f"left out {rows} bad row{'s' * (rows != 1)}:\n{_listed(problems)}")
        self.rows = rows
        self.problems = tuple(problems)


@dataclass(frozen=True)
class _Table:
    """A manifest's rows: what is written in them, and the line each stands on."""

    columns: tuple[str, ...]
    lines: list[int]
    images: list[str]
    labels: list[tuple[str, ...]]
    splits: list[str] | None

    def take(self, rows: Iterable[int]) -> "_Table":
        rows = list(rows)
        splits = None if self.splits is None else [self.splits[i] for i in rows]
        return _Table(
            self.columns,
            [self.lines[i] for i in rows],
            [self.images[i] for i in rows],
            [self.labels[i] for i in rows],
            splits,
        )


class _Problems:
    """Gathers problems; `bad_lines` are those that `skip_bad` can leave out."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: list[tuple[int, str]] = []
        self.bad_lines: set[int] = set()

    def add(self, line: int, what: str) -> None:
        self._found.append((line, what))
        self.bad_lines.add(line)

    def lines(self) -> list[str]:
        return [f"{self._path}:{line}: {what}" for line, what in sorted(self._found)]


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
) -> LabelledImages:
    """Reads the pictures that a CSV file lists; the module's docstring shows the two formats.

    Codes follow the sorted values, numerically where all of a column are numbers. The codes of an ordinal
    column run from its smallest to its largest integer without gaps, so that |a - b| of the codes is that of
    the values.

    Args:
      path: the CSV file, UTF-8.
      root: the folder that picture names start from; the file's own by default.
      image_size: the side S to which pictures are brought.
      resize: "crop" (short side to S, then the centre) or "squash" (both sides to S).
      columns: which label columns to use, the first of them being the identity; all by default. In a file
        without a header they are called class_1 ... class_T.
      ordinal: the columns whose values are integers with an order.
      skip_bad: leave bad rows out with a `ManifestWarning` that counts them, instead of raising.
      split: how to split where the file does not: pictures of every class ("within") or whole classes ("disjoint");
        "given" refuses a file that does not.
      seed: of that split.
      memory_budget: bytes that decoded pictures may take; beyond that they are decoded when they are asked
        for.

    Returns:
      The pictures, labels and split; names are the file names as written.

    Raises:
      ManifestError: for missing, unreadable or truncated pictures, ragged rows, duplicate rows, a split or an
        ordinal value that cannot be read, a class (in the first column) with a single picture; and, whatever
        `skip_bad`, for a missing or empty file, unknown columns, no label column and no row to learn from.
      ValueError: if an argument is out of range.
    """
    path = Path(path)
    check_resize(image_size, resize)
    if split not in ("given", "within", "disjoint"):
        raise ValueError(f"split must be 'given', 'within' or 'disjoint', got {split!r}")
    root = path.parent if root is None else Path(root)
    problems = _Problems(path)
    table = _select(_read(path, problems), columns, path)
    if split == "given" and table.splits is None:
        raise ManifestError([f"{path}: split is 'given', but the file has no column {_SPLIT!r}"])
    ordinal_places = _ordinal_places(table, ordinal, path)

    _find_bad_cells(table, ordinal_places, problems)
    pixels = _decode(_pictures(table, root, image_size, resize), table, problems, memory_budget)
    _find_lonely_classes(table, problems)

    if problems.bad_lines and not skip_bad:
        raise ManifestError(problems.lines())
    good = [i for i, line in enumerate(table.lines) if line not in problems.bad_lines]
    if problems.bad_lines:
        warnings.warn(ManifestWarning(len(problems.bad_lines), problems.lines()), stacklevel=2)
    if not good:
        raise ManifestError([f"{path}: no row is left"])

    table = table.take(good)
    labels, described = _encode(table, ordinal_places)
    source = LabelledImages(
        images=_pictures(table, root, image_size, resize) if pixels is None else pixels[good],
        labels=labels,
        columns=described,
        split=_split(table, labels, split, seed),
        names=tuple(table.images),
    )
    if not (source.split == LEARNING).any():
        raise ManifestError([f"{path}: no row has split 0 (learning)"])
    return source


def _read(path: Path, problems: _Problems) -> _Table:
    """The rows of either format; ragged ones are noted and dropped."""
    rows = _cells(path)
    if not rows:
        raise ManifestError([f"{path}: the file is empty"])
    first_line, first = rows[0]
    if _has_header(first):
        header = [cell.lower() if cell.lower() in (_IMAGE, _SPLIT) else cell for cell in first]
        rows = rows[1:]
    else:
        header = [_IMAGE, *(f"class_{t}" for t in range(1, len(first) - 1)), _SPLIT]
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if repeated:
        raise ManifestError([f"{path}:{first_line}: column {repeated[0]!r} stands there twice"])
    if not rows:
        raise ManifestError([f"{path}: there is no row below the header"])
    labels = tuple(name for name in header if name not in (_IMAGE, _SPLIT))
    if not labels:
        raise ManifestError([f"{path}:{first_line}: no label column: a row needs a picture and at least one label"])

    even = []
    for line, cells in rows:
        if len(cells) == len(header):
            even.append((line, dict(zip(header, cells, strict=True))))
        else:
            problems.add(line, f"{len(cells)} cells where {len(header)} are expected ({', '.join(header)})")
    return _Table(
        columns=labels,
        lines=[line for line, _ in even],
        images=[row[_IMAGE] for _, row in even],
        labels=[tuple(row[name] for name in labels) for _, row in even],
        splits=[row[_SPLIT] for _, row in even] if _SPLIT in header else None,
    )


def _cells(path: Path) -> list[tuple[int, list[str]]]:
    """The cells of every line that has any, with the number of the line."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, skipinitialspace=True)
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except FileNotFoundError as error:
        raise ManifestError([f"{path}: no such file"]) from error
    except OSError as error:
        raise ManifestError([f"{path}: cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise ManifestError([f"{path}: not a text file in UTF-8 (byte {error.start})"]) from error
    except csv.Error as error:
        raise ManifestError([f"{path}: not a CSV file: {error}"]) from error
    return [(line, row) for line, row in rows if any(row)]


def _has_header(first: list[str]) -> bool:
    return _IMAGE in (cell.lower() for cell in first)


def _select(table: _Table, columns: Sequence[str] | None, path: Path) -> _Table:
    """The table with the label columns asked for, in that order."""
    if columns is None:
        return table
    if isinstance(columns, str) or not columns:
        raise ValueError(f"columns must name at least one label column, got {columns!r}")
    unknown = [name for name in columns if name not in table.columns]
    if unknown:
        raise ManifestError([f"{path}: no column {unknown[0]!r}; there are {', '.join(table.columns)}"])
    if len(set(columns)) != len(columns):
        raise ValueError(f"columns must differ, got {tuple(columns)}")
    places = [table.columns.index(name) for name in columns]
    labels = [tuple(row[place] for place in places) for row in table.labels]
    return _Table(tuple(columns), table.lines, table.images, labels, table.splits)


def _ordinal_places(table: _Table, ordinal: Sequence[str], path: Path) -> set[int]:
    unknown = [name for name in ordinal if name not in table.columns]
    if unknown:
        raise ManifestError([f"{path}: no column {unknown[0]!r} to call ordinal; used are {', '.join(table.columns)}"])
    places = {table.columns.index(name) for name in ordinal}
    for place in sorted(places):
        values = {row[place] for row in table.labels if row[place]}
        if values and not any(map(_is_integer, values)):
            name = table.columns[place]
            raise ManifestError([f"{path}: ordinal column {name!r} takes integers, has only such as {min(values)!r}"])
    return places


def _find_bad_cells(table: _Table, ordinal_places: set[int], problems: _Problems) -> None:
    listed: dict[str, int] = {}
    for i, (line, image, labels) in enumerate(zip(table.lines, table.images, table.labels, strict=True)):
        if image in listed:
            problems.add(line, f"{image} is listed on line {listed[image]} already")
        listed.setdefault(image, line)
        if table.splits is not None and table.splits[i].lower() not in _SPLIT_WORDS:
            what = "split must be 0, 1, 2, learning, validation, test, query or gallery"
            problems.add(line, f"{what}, got {table.splits[i]!r}")
        for place in ordinal_places:
            if labels[place] and not _is_integer(labels[place]):
                problems.add(line, f"ordinal column {table.columns[place]!r} takes integers, got {labels[place]!r}")


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _pictures(table: _Table, root: Path, image_size: int, resize: Resize) -> LazyPictures:
    return LazyPictures(partial(_file, root, table.images), table.images, image_size=image_size, resize=resize)


def _file(root: Path, images: Sequence[str], index: int) -> Path:
    return root / images[index]


def _decode(images: LazyPictures, table: _Table, problems: _Problems, memory_budget: int) -> np.ndarray | None:
    """Decodes every picture to find bad ones; returns them all `[N, S, S, 3]` if they fit the budget."""
    kept: np.ndarray | None = None
    for i, picture in enumerate(try_pictures(images)):
        if isinstance(picture, PictureError):
            problems.add(table.lines[i], str(picture))
            continue
        if kept is None and picture.nbytes * len(images) <= memory_budget:
            kept = np.zeros((len(images), *picture.shape), np.uint8)
        if kept is not None:
            kept[i] = picture
    return kept


def _find_lonely_classes(table: _Table, problems: _Problems) -> None:
    """Notes classes with a single picture, before or after bad rows: it can neither be a positive nor be found."""
    rows = list(zip(table.lines, (row[0] for row in table.labels), strict=True))
    listed = Counter(value for _, value in rows)
    good = [(line, value) for line, value in rows if line not in problems.bad_lines]
    left = Counter(value for _, value in good)
    for line, value in good:
        if value and left[value] == 1:
            only = "the only picture" if listed[value] == 1 else "the only good picture"
            problems.add(line, f"{only} of {table.columns[0]} {value!r} (leave that empty to keep the picture)")


def _encode(table: _Table, ordinal_places: set[int]) -> tuple[np.ndarray, tuple[LabelColumn, ...]]:
    codes, columns = [], []
    for place, (name, cells) in enumerate(zip(table.columns, zip(*table.labels, strict=True), strict=True)):
        present = set(cells) - {""}
        values = _range(name, present) if place in ordinal_places else sorted(present, key=_order(present))
        code = {value: i for i, value in enumerate(values)} | {"": -1}
        codes.append([code[str(int(cell)) if cell and place in ordinal_places else cell] for cell in cells])
        columns.append(LabelColumn(name, tuple(values), ordinal=place in ordinal_places))
    return np.array(codes, np.int32).T, tuple(columns)


def _range(name: str, present: set[str]) -> list[str]:
    """All integers from the smallest value to the largest."""
    numbers = {int(value) for value in present}
    low, high = min(numbers, default=0), max(numbers, default=-1)
    if high - low >= _MAX_ORDINAL_RANGE:
        raise ManifestError([f"ordinal column {name!r} runs from {low} to {high}: group its values more coarsely"])
    return [str(value) for value in range(low, high + 1)]


def _order(values: set[str]) -> Callable[[str], Any]:
    """The key that sorts values numerically if all are numbers, else as text."""
    try:
        numeric = all(math.isfinite(float(value)) for value in values)
    except ValueError:
        numeric = False
    return (lambda value: (float(value), value)) if numeric else str


def _split(table: _Table, labels: np.ndarray, split: str, seed: int) -> np.ndarray:
    if table.splits is not None:
        return np.array([_SPLIT_WORDS[word.lower()] for word in table.splits], np.int8)
    function = split_within_classes if split == "within" else split_disjoint_classes
    return function(labels[:, 0], seed=seed)


def _listed(problems: Sequence[str]) -> str:
    more = len(problems) - _PROBLEMS_SHOWN
    return "\n".join([*problems[:_PROBLEMS_SHOWN], *([f"... and {more} more"] if more > 0 else [])])
