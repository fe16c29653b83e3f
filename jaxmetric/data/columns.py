"""Finds the columns of a table that hold images, split and labels: `find_columns`.

Columns are recognized by their names. Ambiguous tables are refused, and every ignored column is noted.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxmetric.data.csv_table import IMAGE, IMAGE_IDS, IMAGE_NAMES, IMAGE_PLURALS, CsvTable, is_whole, plain_name
from jaxmetric.data.label_values import MISSING_WORDS, looks_missing
from jaxmetric.data.labeled_images import GALLERY, LEARNING, QUERY, SPLITS, TEST, VALIDATION
from jaxmetric.data.problems import Problems

SPLIT = "split"
SPLIT_WORDS = {
    **dict.fromkeys(("0", "learning", "learn", "train", "training"), LEARNING),
    **dict.fromkeys(("1", "validation", "valid", "val", "dev", "publictest"), VALIDATION),  # PublicTest as in FER2013
    **dict.fromkeys(("2", "test", "testing", "privatetest"), TEST),
    **dict.fromkeys(("query", "queries", "probe"), QUERY),
    "gallery": GALLERY,
}
# Usual names of a split column. A column of another name must hold two different splits.
_WORDED_SPLITS = frozenset({"set", "subset", "image_set", "phase", "usage"})
_NUMBERED_SPLITS = frozenset({"partition", "evaluation_status", "eval_status", "data_split", "dataset_split"})
_SPLIT_FLAGS = {  # the splits for true and for false
    **dict.fromkeys(("is_train", "is_training", "train"), (LEARNING, TEST)),
    **dict.fromkeys(("is_val", "is_valid", "is_validation", "val", "valid"), (VALIDATION, LEARNING)),
    **dict.fromkeys(("is_test", "is_testing", "test"), (TEST, LEARNING)),
}
_ROW_IDS = frozenset({*IMAGE_IDS, "index", "idx", "id", "row", "row_id", "rowid", "rownames", "no"})
# Usual names of the identity. The first group takes precedence.
_IDENTITIES = (
    frozenset({"identity", "identity_id"}),
    frozenset({"person", "person_id", "pid", "label", "class", "class_id", "class_name", "item", "item_id"}),
)
_FLAGS = ("is_query", "is_gallery")
_TRUE, _FALSE = frozenset({"true", "1", "yes", "t"}), frozenset({"false", "0", "no", "f", ""})


@dataclass(frozen=True)
class Columns:
    """The positions of a table's columns.

    Attributes:
      names: the names of all columns.
      image: the position of the image column.
      split: the position of the split column, if any.
      flags: the positions of is_query and is_gallery, or ().
      labels: the positions of the label columns, in order.
    """

    names: tuple[str, ...]
    image: int
    split: int | None
    flags: tuple[int, ...]
    labels: tuple[int, ...]


def find_columns(table: CsvTable, chosen: Sequence[str] | None, problems: Problems) -> Columns:
    """Finds the columns of a table; `chosen` names the label columns to use, all by default.

    Raises:
      ManifestError: if no column or several may hold the images, a column without a name has values, a name is
        repeated, a chosen column does not exist or has no value, or no label column is left.
    """
    columns = _named_columns(table, chosen, problems) if table.header else _headerless(table, chosen, problems)
    empty = [columns.names[place] for place in columns.labels if not has_values(table, place)]
    if empty:
        raise problems.refusal(
            f"label column {empty[0]!r} has no value in any row; fill it, or leave it out of the label columns "
            "(--columns)",
            table.header_line,
        )
    return columns


def has_values(table: CsvTable, place: int) -> bool:
    """Returns whether a column has any value that is not missing."""
    return not {cells[place] for cells in table.rows} <= MISSING_WORDS | {""}


def _named_columns(table: CsvTable, chosen: Sequence[str] | None, problems: Problems) -> Columns:
    names, line = table.header, table.header_line
    repeated = [name for i, name in enumerate(names) if name and name in names[:i]]
    if repeated:
        raise problems.refusal(f"column {repeated[0]!r} is named twice", line)
    image = _image_column(table, problems)
    free = [place for place in range(len(names)) if place != image]
    split = _split_column(table, free, chosen or (), problems)
    flags = tuple(place for flag in _FLAGS for place in free if plain_name(names[place]) == flag)
    if len(flags) == 1:
        (other,) = set(_FLAGS) - {plain_name(names[flags[0]])}
        raise problems.refusal(f"column {names[flags[0]]!r} also needs a column {other!r}", line)
    others = [place for place in free if place not in (split, *flags)]
    labels = others
    if chosen is None:
        labels = _label_columns(table, others, split, problems)
        _note_second_images(table, image, labels, problems)
        _note_identity_not_first([names[place] for place in labels], problems)
    return _chosen(Columns(names, image, split, flags, tuple(labels)), table, chosen, problems)


def read_splits(table: CsvTable, columns: Columns, problems: Problems) -> np.ndarray | None:
    """Returns the split of each row, int8 `[N]`, or None if the file has none. Invalid cells become problems."""
    if columns.split is None and not columns.flags:
        return None
    splits = np.full(len(table.rows), LEARNING, np.int8)
    if columns.split is not None:
        codes, expected = _split_codes(table, columns.split), _expected_split(table, columns.split)
        for i, cells in enumerate(table.rows):
            code = codes.get(_split_word(cells[columns.split]))
            if code is None:
                problems.add(table.lines[i], f"{expected}, got {cells[columns.split]!r}")
            else:
                splits[i] = code
    return _flagged(splits, table, columns, problems) if columns.flags else splits


def _headerless(table: CsvTable, chosen: Sequence[str] | None, problems: Problems) -> Columns:
    """Returns the columns of the published format without a header, `filename, class_1, ..., class_T, split`."""
    width = len(table.rows[0])
    names = (IMAGE, *(f"class_{t}" for t in range(1, width - 1)), SPLIT)
    if width == 2:
        raise problems.refusal(
            "no label column: without a header the last column is taken as the split; if it holds the identity, add "
            f"the header {table.separator.join((IMAGE, 'identity'))!r}",
            table.header_line,
        )
    labeled: Sequence[int] = range(1, width - 1)
    if chosen is None:
        labeled = _with_values(table, labeled, names, problems)
    columns = Columns(names, 0, width - 1, (), tuple(labeled))
    columns = _chosen(columns, table, chosen, problems)
    labels = f"{names[1]} ... {names[-2]}" if width > 3 else names[1]
    problems.note(
        f"no header: the first column is taken as the images, the last one as the split (0 {SPLITS[0]}, 1 {SPLITS[1]}, "
        f"2 {SPLITS[2]}), the labels between them as {labels}; name the columns in a header if that is wrong"
    )
    return columns


def _image_column(table: CsvTable, problems: Problems) -> int:
    plain = [plain_name(name) for name in table.header]
    for known in ({IMAGE}, IMAGE_NAMES, IMAGE_PLURALS, IMAGE_IDS):
        places = [place for place, name in enumerate(plain) if name in known]
        if len(places) > 1:
            names = " and ".join(repr(table.header[place]) for place in places)
            raise problems.refusal(
                f"columns {names} may both hold the images; rename the right one 'image'", table.header_line
            )
        if places:
            return places[0]
    raise AssertionError("a header names an image column")


def _split_column(table: CsvTable, places: Sequence[int], chosen: Sequence[str], problems: Problems) -> int | None:
    """Returns the column `split`, or the only other column that holds the split and is not a chosen label."""
    found = [place for place in places if plain_name(table.header[place]) == SPLIT]
    if not found:
        others = [place for place in places if table.header[place] not in chosen]
        found = [place for place in others if _holds_splits(table, place)]
        for place in others:
            if place not in found:
                _note_almost_splits(table, place, problems)
    if len(found) > 1:
        names = " and ".join(repr(table.header[place]) for place in found)
        raise problems.refusal(
            f"columns {names} may both be the split; rename the right one 'split', or name the labels with --columns",
            table.header_line,
        )
    if not found:
        return None
    _note_unusual_split(table, found[0], problems)
    return found[0]


def _holds_splits(table: CsvTable, place: int) -> bool:
    """Returns whether all values of a column that are not missing are splits."""
    name, words = plain_name(table.header[place]), _words(table, place)
    codes = _split_codes(table, place)
    if not name or not words or not words <= set(codes):
        return False
    if name in _NUMBERED_SPLITS or _is_split_flag(table, place):
        return True
    worded = not any(word.isdecimal() for word in words)
    return worded and (name in _WORDED_SPLITS or len({codes[word] for word in words}) > 1)


def _split_codes(table: CsvTable, place: int) -> Mapping[str, int]:
    """Returns the split for each word in a column."""
    if not table.header:
        return {word: SPLIT_WORDS[word] for word in ("0", "1", "2")}
    if not _is_split_flag(table, place):
        return SPLIT_WORDS
    true, false = _SPLIT_FLAGS[plain_name(table.header[place])]
    return {**dict.fromkeys(_TRUE, true), **dict.fromkeys(_FALSE - {""}, false)}


def _is_split_flag(table: CsvTable, place: int) -> bool:
    return plain_name(table.header[place]) in _SPLIT_FLAGS and _words(table, place) <= _TRUE | _FALSE


def _expected_split(table: CsvTable, place: int) -> str:
    if not table.header:
        return "split must be 0, 1 or 2, without a header"
    if _is_split_flag(table, place):
        return f"{table.header[place]} must be true or false"
    name = SPLIT if plain_name(table.header[place]) == SPLIT else f"{SPLIT} (column {table.header[place]!r})"
    return f"{name} must be 0, 1, 2, {', '.join(SPLITS[:-1])} or {SPLITS[-1]}"


def _words(table: CsvTable, place: int) -> set[str]:
    """Returns the values of a column that are not missing, in the form in which splits are looked up."""
    return {_split_word(cells[place]) for cells in table.rows if not looks_missing(cells[place])}


def _note_almost_splits(table: CsvTable, place: int, problems: Problems) -> None:
    """Notes a label column whose name or values suggest that it is the split."""
    name, words = plain_name(table.header[place]), _words(table, place)
    known = set(SPLIT_WORDS) | (_TRUE | _FALSE if name in _SPLIT_FLAGS else set())
    other = sorted(words - known)
    if name in {*_WORDED_SPLITS, *_NUMBERED_SPLITS, *_SPLIT_FLAGS}:
        almost = bool(words & known)
    else:
        almost = len({SPLIT_WORDS[word] for word in words & known if not word.isdecimal()}) > 1
    if almost:
        what = f"value {other[0]!r} is not a split" if other else f"value {min(words)!r} may not be a split"
        problems.note(
            f"column {table.header[place]!r} is taken as a label, since its {what}; rename the column 'split' if it is "
            "one"
        )


def _note_unusual_split(table: CsvTable, place: int, problems: Problems) -> None:
    """Notes a split of numbers, and one recognized only by its values or by a name that a label might have."""
    name = plain_name(table.header[place])
    _note_numbered_split(table, place, problems)
    if name == SPLIT or name in _NUMBERED_SPLITS or (name in _WORDED_SPLITS and not _is_split_flag(table, place)):
        return
    meaning = "its values are all splits"
    if _is_split_flag(table, place):
        true, false = _SPLIT_FLAGS[name]
        meaning = f"true is {SPLITS[true]}, false is {SPLITS[false]}"
    problems.note(
        f"column {table.header[place]!r} is taken as the split: {meaning}; name the labels with --columns "
        "if it is one of them"
    )


def _note_numbered_split(table: CsvTable, place: int, problems: Problems) -> None:
    """Notes the meaning of the numbers of a split, since some lists use 1 for training and 0 for test."""
    numbers = {word for word in _words(table, place) if word in ("0", "1", "2")}
    if not numbers or _is_split_flag(table, place):
        return
    cure = "; if 1 marks the images to learn from, as in CUB, rename the column 'is_train'"
    problems.note(
        f"column {table.header[place]!r} holds numbers: 0 is {SPLITS[0]}, 1 {SPLITS[1]}, 2 {SPLITS[2]}"
        + (cure if "1" in numbers and "2" not in numbers else "")
    )


def _split_word(cell: str) -> str:
    """Returns the form in which a cell is looked up: `Public Test` and `public_test` become `publictest`."""
    return re.sub(r"(?<=[a-z])[\s_-]+(?=[a-z])", "", cell.lower()).removesuffix(".0")


def _label_columns(table: CsvTable, places: Sequence[int], split: int | None, problems: Problems) -> list[int]:
    """Returns the positions of the label columns.

    Unnamed columns are ignored. So are row numbers, a second split column and columns without a value, if there are
    other label columns.
    """
    named = [place for place in places if not _left_out_unnamed(table, place, problems)]
    labels = _with_values(table, named, table.header, problems)
    for place in list(labels):
        name = table.header[place]
        if plain_name(name) in _ROW_IDS and _numbers_the_rows(table, place):
            reason = "numbers the rows"
        elif split is not None and _holds_splits(table, place):
            reason = f"holds splits beside {table.header[split]!r}"
        else:
            continue
        if len(labels) > 1:
            problems.note(f"column {name!r} {reason} and is left out; --columns can name it")
            labels.remove(place)
        elif split is not None:
            problems.note(f"column {name!r} {reason} and is kept as the only label; is it one?")
    return labels


def _with_values(table: CsvTable, places: Sequence[int], names: Sequence[str], problems: Problems) -> list[int]:
    """Returns the positions of columns with a value, or all if no column has one."""
    kept = [place for place in places if has_values(table, place)] or list(places)
    for place in places:
        if place not in kept:
            problems.note(
                f"column {names[place]!r} has no value in any row and is left out"
                + (f"; the identity is {names[kept[0]]!r} then" if place < kept[0] else "")
            )
    return kept


def _note_second_images(table: CsvTable, image: int, labels: Sequence[int], problems: Problems) -> None:
    """Notes a label column whose name could be that of an image column."""
    for place in labels:
        if plain_name(table.header[place]) in IMAGE_NAMES | IMAGE_PLURALS:
            problems.note(
                f"column {table.header[image]!r} is taken as the images and column {table.header[place]!r} as a label; "
                "name the label columns with --columns if it is none"
            )


def _note_identity_not_first(names: Sequence[str], problems: Problems) -> None:
    """Notes a label column with a usual name of the identity that is not the first label column."""
    for known in _IDENTITIES:
        later = [name for name in names if plain_name(name) in known]
        if not later:
            continue
        if later[0] != names[0]:
            ordered = shlex.join([later[0], *(name for name in names if name != later[0])][:5])
            more = " ..." if len(names) > 5 else ""
            problems.note(
                f"the first label column, {names[0]!r}, is taken as the identity, though another one is called "
                f"{later[0]!r}; write --columns {ordered}{more} if that is the identity"
            )
        return


def _left_out_unnamed(table: CsvTable, place: int, problems: Problems) -> bool:
    name = plain_name(table.header[place])
    if not _is_unnamed(name):
        return False
    values = {cells[place] for cells in table.rows} - {""}
    which = f"column {place + 1} ({table.header[place] or 'unnamed'})"
    if not values:
        problems.note(f"{which} has no value in any row and is left out; does the header end in a separator?")
        return True
    leading = all(_is_unnamed(before) for before in table.header[:place])
    index = (leading or name.startswith("unnamed:_0")) and all(is_whole(value.removesuffix(".0")) for value in values)
    if not index:
        raise problems.refusal(
            f"{which} has values, such as {min(values)!r}, but no name; name it in the header, or remove it",
            table.header_line,
        )
    problems.note(f"{which} is taken as a row index and left out; name it in the header if it is a label")
    return True


def _is_unnamed(name: str) -> bool:
    return not name.strip() or name.strip().lower().startswith("unnamed:")


def _numbers_the_rows(table: CsvTable, place: int) -> bool:
    cells = [cells[place] for cells in table.rows]
    return all(map(is_whole, cells)) and len(cells) > 1 and set(np.diff(list(map(int, cells))).tolist()) == {1}


def _chosen(columns: Columns, table: CsvTable, chosen: Sequence[str] | None, problems: Problems) -> Columns:
    """Returns the columns with only the chosen label columns, in the chosen order."""
    if not columns.labels:
        raise problems.refusal("no label column: a row needs an image and at least one label", table.header_line)
    if chosen is None:
        return columns
    places = {columns.names[place]: place for place in columns.labels if columns.names[place]}
    unknown = [name for name in chosen if name not in places]
    if unknown:
        raise problems.refusal(f"no column {unknown[0]!r}; the label columns are {', '.join(places)}")
    return Columns(columns.names, columns.image, columns.split, columns.flags, tuple(places[name] for name in chosen))


def _flagged(splits: np.ndarray, table: CsvTable, columns: Columns, problems: Problems) -> np.ndarray:
    """Updates the splits from is_query and is_gallery.

    An image with both flags keeps its split, whose images are both queries and gallery.
    """
    query, gallery = (_flag(table, place, problems) for place in columns.flags)
    if columns.split is not None:
        for i in np.flatnonzero((splits == LEARNING) & (query | gallery)):
            problems.add(table.lines[i], f"is_query or is_gallery is true for a {SPLITS[LEARNING]} image")
    good = np.array([line not in problems.bad_lines for line in table.lines])
    both, one = query & gallery & good, (query ^ gallery) & good
    if both.any() and one.any():
        what = f"only one of is_query and is_gallery is true here, but both are on line {table.lines[np.argmax(both)]}"
        problems.add(table.lines[np.argmax(one)], f"{what}; set both for every held-out image, or for none")
    splits = np.where(both & (splits == LEARNING), TEST, splits)
    return np.where(one, np.where(query, QUERY, GALLERY), splits).astype(np.int8)


def _flag(table: CsvTable, place: int, problems: Problems) -> np.ndarray:
    """Returns the values of a true/false column, booleans `[N]`; a missing cell is false."""
    words = ["" if looks_missing(cells[place]) else _split_word(cells[place]) for cells in table.rows]
    for line, word, cells in zip(table.lines, words, table.rows, strict=True):
        if word not in _TRUE | _FALSE:
            problems.add(line, f"{plain_name(table.header[place])} must be true or false, got {cells[place]!r}")
    return np.array([word in _TRUE for word in words])
