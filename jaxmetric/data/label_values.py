"""Converts the cells of label columns to codes: `clean_values`, `note_values` and `encode_values`."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np

from jaxmetric.data.labeled_images import LabelColumn
from jaxmetric.data.problems import Problems, counted, some_of

# The words that pandas reads as missing.
MISSING_WORDS = frozenset(
    {"NA", "N/A", "n/a", "<NA>", "#N/A", "#NA", "#N/A N/A", "NaN", "nan", "-NaN", "-nan", "NULL", "null", "None"}
)
_FOLDED_MISSING_WORDS = frozenset({"", *(word.casefold().replace(" ", "") for word in MISSING_WORDS)})
_INVISIBLE = frozenset({"Cc", "Cf", "Zl", "Zp", "Zs"})  # Unicode categories
_VARIATION_SELECTORS = range(0xFE00, 0xFE10)
# How Excel and pandas write long numbers after dropping their last digits.
_SCIENTIFIC = re.compile(r"[+-]?\d([.,]\d+)?[eE]\+\d+")
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
_PLACEHOLDERS = frozenset({"unknown", "unk", "missing", "unspecified", "undefined", "tbd"})
_MAX_ORDINAL_RANGE = 100_000


def clean_values(names: Sequence[str], cells: Sequence[Sequence[str]], problems: Problems) -> list[tuple[str, ...]]:
    """Normalizes the values of each row: "" for missing words, 31 for 31.0, and Unicode's composed form.

    Args:
      names: the names of the T columns.
      cells: N rows of T cells.
      problems: receives a note that counts the missing words.
    """
    columns, missing = [], []
    for name, column in zip(names, zip(*cells, strict=True), strict=True):
        words = Counter(cell for cell in column if cell in MISSING_WORDS)
        if words:
            missing.append(f"{name} ({words.total():,} {' or '.join(sorted(words))})")
        known = ["" if cell in MISSING_WORDS else unicodedata.normalize("NFC", cell) for cell in column]
        numeric = _all_numbers(set(known) - {""})
        columns.append([_without_fraction(cell) if numeric else cell for cell in known])
    if missing:
        problems.note(f"taken as missing: {some_of(missing)}")
    return list(zip(*columns, strict=True))


def note_values(
    names: Sequence[str], rows: Sequence[Sequence[str]], ordinal: Collection[int], problems: Problems
) -> None:
    """Notes columns with fewer than two values, and values that may be misread."""
    minus_one, like_missing = [], []
    for place, (name, column) in enumerate(zip(names, zip(*rows, strict=True), strict=True)):
        counts = Counter(value for value in column if value)
        if len(counts) < 2:
            only = f"only the value {next(iter(counts))!r}" if counts else "no value in any row"
            problems.note(f"column {name!r} has {only}; it distinguishes no images")
        if counts["-1"]:
            minus_one.append(f"{name} ({counted(counts['-1'], 'image')})")
        words = {value: n for value, n in counts.items() if looks_missing(value)}
        if words:
            like_missing.append(f"{name} ({sum(words.values()):,} {' or '.join(map(repr, sorted(words)))})")
        if place == 0:
            _note_single_images(name, counts, problems)
        _note_lone_words(name, counts, problems)
        _note_scientific(name, counts, problems)
        if place not in ordinal:
            _note_equal_numbers(name, counts, problems)
            _note_similar_values(name, counts, problems)
    if like_missing:
        problems.note(
            f"read as values, not as missing: {some_of(like_missing)}; leave a cell empty if its value is missing"
        )
    if minus_one:
        problems.note(
            f"-1 is read as a value, not as missing: {some_of(minus_one)}; leave a cell empty if its value is missing"
        )


def encode_values(
    names: Sequence[str], rows: Sequence[Sequence[str]], ordinal: Collection[int], problems: Problems
) -> tuple[np.ndarray, tuple[LabelColumn, ...]]:
    """Encodes values as int32 `[N, T]`, with -1 for missing ones; also returns the meaning of the codes.

    Raises:
      ManifestError: if an ordinal column has too wide a range.
    """
    codes, columns = [], []
    for place, (name, cells) in enumerate(zip(names, zip(*rows, strict=True), strict=True)):
        present = set(cells) - {""}
        values = _range(name, present, problems) if place in ordinal else sorted(present, key=_order(present))
        code = {value: i for i, value in enumerate(values)} | {"": -1}
        codes.append([code[str(int(cell)) if cell and place in ordinal else cell] for cell in cells])
        columns.append(LabelColumn(name, tuple(values), ordinal=place in ordinal))
    return np.array(codes, np.int32).T, tuple(columns)


def whole_number_cure(value: str) -> str:
    """Suggests what to do about a value that is not an integer, for messages.

    Example:
      >>> whole_number_cure("20.5"), whole_number_cure("?")
      ('round it', 'leave the cell empty if it means missing')
    """
    if _DECIMAL_COMMA.fullmatch(value):
        return "round it; the comma is read as a decimal comma"
    if _SCIENTIFIC.fullmatch(value):
        return "write all its digits, at most 18"
    if not _all_numbers({value}):
        return "leave the cell empty if it means missing"
    return "round it" if float(value) % 1 else "write its digits alone, at most 18"


def looks_missing(value: str) -> bool:
    """Returns whether a value is empty or a missing word, ignoring case, spaces and invisible characters.

    Example:
      >>> looks_missing("Null"), looks_missing("Nullarbor")
      (True, False)
    """
    return _visible_letters(value) in _FOLDED_MISSING_WORDS


def _all_numbers(values: Collection[str]) -> bool:
    try:
        return all(math.isfinite(float(value)) for value in values)
    except ValueError:
        return False


def _without_fraction(cell: str) -> str:
    """Returns 31 for 31.0, which pandas writes for integers in a column with missing values."""
    return re.sub(r"\.0*$", "", cell)


def _note_single_images(name: str, counts: Counter[str], problems: Problems) -> None:
    single = [value for value, count in counts.items() if count == 1]
    if not single:
        return
    doubt = f"; is {name} the identity? --columns names the label columns, identity first"
    problems.note(
        f"{len(single):,} of the {counted(len(counts), 'value')} of {name} {'has' if len(single) == 1 else 'have'} "
        f"only one image, such as {single[0]!r}; such images are kept for their other labels and for the gallery"
        + (doubt if len(single) == len(counts) else "")
    )


def _note_lone_words(name: str, counts: Counter[str], problems: Problems) -> None:
    """Notes other values among numbers: a single one, or several that are placeholders or have no letters or digits."""
    words = [value for value in counts if not _all_numbers({value}) and not looks_missing(value)]
    placeholders = all(value.casefold() in _PLACEHOLDERS or not any(map(str.isalnum, value)) for value in words)
    numbers = sum(_all_numbers({value}) for value in counts)
    if words and numbers >= 2 and (len(words) == 1 or placeholders):
        what = "is a value" if len(words) == 1 else "are values"
        problems.note(
            f"{' and '.join(map(repr, words))} {what} of {name}, and all others are numbers; leave the cell empty if "
            f"{'it means' if len(words) == 1 else 'they mean'} missing"
        )


def _note_scientific(name: str, counts: Counter[str], problems: Problems) -> None:
    values = [value for value in counts if _SCIENTIFIC.fullmatch(value)]
    if values:
        number = counted(sum(counts[value] for value in values), "image")
        problems.note(
            f"{name} has numbers in scientific notation, such as {values[0]!r} ({number}), as spreadsheets write long "
            "numbers, which they round: different ones can become one; format the column as text and save it again"
        )


def _note_equal_numbers(name: str, counts: Counter[str], problems: Problems) -> None:
    """Notes values such as 7 and 07, which are different unless the column is ordinal."""
    seen: dict[Decimal, str] = {}
    for value in counts:
        try:
            number = Decimal(value)
        except InvalidOperation:
            return
        if number in seen:
            problems.note(
                f"{seen[number]!r} and {value!r} are different values of {name}; "
                "write them identically if they mean the same"
            )
            return
        seen[number] = value


def _note_similar_values(name: str, counts: Counter[str], problems: Problems) -> None:
    """Notes values that differ only in case (Ann and ann), spaces or invisible characters."""
    spellings: dict[str, list[str]] = {}
    for value in counts:
        spellings.setdefault(_visible_letters(value), []).append(value)
    similar = [" and ".join(map(repr, values)) for values in spellings.values() if len(values) > 1]
    if similar:
        problems.note(
            f"values of {name} differ only in case, spaces or invisible characters, such as {similar[0]}, in "
            f"{counted(len(similar), 'group')}; write them identically if they mean the same"
        )


def _visible_letters(value: str) -> str:
    """Returns a value without case, spaces and invisible characters."""
    shown = (
        letter
        for letter in unicodedata.normalize("NFC", value.casefold())
        if unicodedata.category(letter) not in _INVISIBLE and ord(letter) not in _VARIATION_SELECTORS
    )
    return "".join(shown)


def _range(name: str, present: set[str], problems: Problems) -> list[str]:
    """Returns all integers from the smallest value to the largest, as text."""
    numbers = {int(value) for value in present}
    low, high = min(numbers, default=0), max(numbers, default=-1)
    if high - low >= _MAX_ORDINAL_RANGE:
        raise problems.refusal(f"ordinal column {name!r} runs from {low} to {high}: group its values more coarsely")
    return [str(value) for value in range(low, high + 1)]


def _order(values: set[str]) -> Callable[[str], Any]:
    """Returns the key that sorts values numerically if all are numbers, else as text."""
    return (lambda value: (float(value), value)) if _all_numbers(values) else str
