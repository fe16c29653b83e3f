"""Reads a text file of separated values into a table: `read_table`.

The separator (comma, semicolon, tab, bar or spaces) is the one for which the first line names an image column, or
otherwise the one for which most lines have the same number of cells. Every line is in the table, in the problems, or
counted in a note.
"""

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from jaxmetric.data.problems import Problems, counted, some_of

SEPARATORS = {",": "','", ";": "';'", "\t": "tab", "|": "'|'", " ": "space"}
IMAGE = "image"
IMAGE_NAMES = frozenset(
    f"{thing}{part}"
    for thing in ("image", "img", "picture", "photo", "file")
    for part in ("", "_path", "path", "_name", "name", "_file", "file", "_uri", "uri")
) - {"filefile", "file_file"} | {"path", "relative_path", "rel_path", "fname", "fpath", "uri"}
# Used only if no column has one of the names above.
IMAGE_PLURALS = frozenset(f"{name}s" for name in IMAGE_NAMES)
IMAGE_IDS = frozenset({"image_id", "img_id", "imageid"})
IMAGE_SUFFIXES = frozenset(
    {*(".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"), *(".pbm", ".jp2", ".avif")}
)
# For other kinds of files: the first bytes, the kind, and what to do.
_AS_CSV = "save it as CSV in UTF-8"
_TO_CSV = "write it as CSV, as pandas.DataFrame.to_csv(path, index=False) does"
_UNPACK = "unpack it first"
_OTHER_FILES = (
    (rb"PK\x03\x04(?=.*(xl/|\[Content_Types\]))", "an Excel sheet", _AS_CSV),
    (rb"PK\x03\x04(?=.*opendocument)", "an OpenDocument sheet", _AS_CSV),
    (rb"PK\x03\x04", "a ZIP archive", _UNPACK),
    (rb"\xd0\xcf\x11\xe0", "an old Excel sheet", _AS_CSV),
    (rb"\x1f\x8b|BZh[1-9]1AY&SY|\xfd7zXZ|\x28\xb5\x2f\xfd", "a compressed file", _UNPACK),
    (rb"PAR1(?=.*\x00)", "a Parquet file", _TO_CSV),
    (rb"\x89PNG|\xff\xd8\xff|GIF8[79]a(?=.*\x00)", "an image", "give the CSV file that names the images"),
    (rb"%PDF", "a PDF file", _AS_CSV),
    (rb"(\xef\xbb\xbf)?\s*(\[\s*)?\{\s*[\"}]", "JSON", _TO_CSV),
    (
        rb"(\xef\xbb\xbf)?\s*<((?i:!doctype html|html)|\?xml)",
        "HTML or XML",
        "download the list itself, or save it as CSV",
    ),
)
_JSON_SUFFIXES = frozenset({".json", ".jsonl", ".ndjson"})
_SAMPLED_LINES = 200
_SEPARATORS_TRIED = f"one of {', '.join(SEPARATORS.values())}"

Record = tuple[int, list[str]]


@dataclass(frozen=True)
class CsvTable:
    """The rows of a file, all with the same number of cells.

    Attributes:
      separator: a key of `SEPARATORS`.
      header: the names in the header as written; () if there is no header.
      header_line: the line of the header, or the first line.
      lines: the line of each row.
      rows: the cells of each row.
    """

    separator: str
    header: tuple[str, ...]
    header_line: int
    lines: list[int]
    rows: list[list[str]]

    def described(self) -> str:
        """Describes how the file was read, for messages."""
        header = ", ".join(name or "(unnamed)" for name in self.header) or "none (filename, class_1 ... class_T, split)"
        return f"separator {SEPARATORS[self.separator]}; header: {header}"


def read_table(path: Path, problems: Problems) -> CsvTable:
    """Reads the rows of a file. Broken and ragged lines become problems, ignored lines become notes.

    Raises:
      ManifestError: if the file cannot be read as text or has no row.
    """
    separator, text = _announced_separator(_text(path, problems), problems)
    separator = separator or _separator(text)
    records = [record for record in _records(text, separator, problems) if _not_blank(record)]
    if not records:
        raise problems.refusal("no line can be read" if problems.bad_lines else "the file is empty")
    if problems.bad_lines and min(problems.bad_lines) < records[0][0]:
        raise problems.refusal("the header on the first line cannot be read")
    announced = _pop_count(records)
    records = _without_comments(records, problems)
    problems.read_as = f"separator {SEPARATORS[separator]}"
    table = _with_header(separator, records, problems)
    problems.read_as = table.described()
    table = _without_empty_rows(_without_repeated_headers(table, problems), problems)
    if announced is not None and announced != len(table.rows):
        problems.add(
            1, f"says that {counted(announced, 'row')} follow, but {len(table.rows):,} do; correct or remove this line"
        )
    if not table.rows:
        raise problems.refusal("there is no row below the header")
    return _even_rows(_without_row_names(_without_empty_ends(table, problems), problems), problems)


def names_an_image(cells: list[str]) -> bool:
    """Returns whether one of the cells is a usual name of an image column."""
    return any(plain_name(cell) in IMAGE_NAMES | IMAGE_PLURALS | IMAGE_IDS for cell in cells)


def plain_name(name: str) -> str:
    """Returns the form in which column names are compared: lower case, words joined by underscores.

    Example:
      >>> plain_name("Image Path")
      'image_path'
    """
    return re.sub(r"[\s.-]+", "_", name.strip().lower())


def is_whole(text: str) -> bool:
    """Returns whether a cell is an integer of at most 18 digits."""
    return re.fullmatch(r"-?\d{1,18}", text) is not None


def _other_file(path: Path, data: bytes) -> str:
    """Describes a file that is not a text table, and what to do; "" for a list."""
    for start, what, cure in _OTHER_FILES:
        if re.match(start, data, re.DOTALL):
            return f"this is {what}, not a CSV file; {cure}"
    if path.suffix.lower() in _JSON_SUFFIXES and data.lstrip()[:1] in (b"[", b"{"):
        return f"this is JSON, not a CSV file; {_TO_CSV}"
    return ""


def _text(path: Path, problems: Problems) -> str:
    if path.is_dir():
        raise problems.refusal(
            "this is a folder, not a CSV file; name the CSV file that lists its images (docs/data.md shows how to "
            "write one from a folder for each identity)"
        )
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise problems.refusal("no such file") from error
    except OSError as error:
        raise problems.refusal(f"cannot be read: {error.strerror}") from error
    other = _other_file(path, data)
    if other:
        raise problems.refusal(other)
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if wide else "utf-8")
    except UnicodeDecodeError as error:
        line = 1 + data.count(b"\n", 0, error.start)
        raise problems.refusal(
            f"not a text file in UTF-8 (byte {error.start}, line {line}); save it as UTF-8"
        ) from error
    if "\0" in text:
        line = 1 + text.count("\n", 0, text.index("\0"))
        raise problems.refusal("contains a NUL character; save the list as UTF-8 text", line)
    return text.replace("\ufeff", "")  # joined files can have a byte order mark each


def _announced_separator(text: str, problems: Problems) -> tuple[str, str]:
    """Returns the separator of a first line such as `sep=;` (from Excel) or "", and the text with that line blank."""
    found = re.match(r'"?sep=(.)"?[ ,;]*(?=[\r\n])', text, re.IGNORECASE)
    if not found:
        return "", text
    if found[1] not in SEPARATORS:
        raise problems.refusal(f"the separator is {found[1]!r}, but it must be {_SEPARATORS_TRIED}", 1)
    return found[1], text[found.end() :]


def _separator(text: str) -> str:
    lines = list(islice(io.StringIO(text, newline=""), _SAMPLED_LINES))
    return max(SEPARATORS, key=lambda separator: _fitness("".join(lines), separator))


def _fitness(text: str, separator: str) -> tuple[bool, float]:
    """Returns whether the first lines name an image column and others, and the share of lines of the usual width."""
    rows = [cells for _, cells in _records(text, separator, Problems(Path())) if any(cells)]
    named = any(len(cells) > 1 and names_an_image(_uncommented(cells)) for cells in rows[:3])
    (width, lines), *_ = Counter(map(len, rows)).most_common(1) or [(1, 0)]
    return named, lines / len(rows) if width > 1 else 0.0


def _records(text: str, separator: str, problems: Problems) -> Iterator[Record]:
    """Yields the line and the cells of each record. Records over several lines become problems."""
    lines = io.StringIO(text, newline="")
    trimmed = (line.rstrip() + "\n" for line in lines) if separator == " " else lines
    reader = csv.reader(trimmed, delimiter=separator, skipinitialspace=True, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            unclosed = "unexpected end of data" in str(error)
            what = "the quote opened here is never closed" if unclosed else f"broken quotes or cells ({error})"
            problems.add(line, what, last=reader.line_num)
            continue
        if reader.line_num == line:
            yield line, [cell.strip() for cell in cells]
        else:
            what = f"the quote opened here is closed on line {reader.line_num}; a cell cannot contain a line break"
            problems.add(line, what, last=reader.line_num)


def _not_blank(record: Record) -> bool:
    return len(record[1]) > 1 or any(record[1])


def _uncommented(cells: list[str]) -> list[str]:
    return [cells[0].removeprefix("#").strip(), *cells[1:]]


def _pop_count(records: list[Record]) -> int | None:
    """Removes a first line that holds only the number of rows, as in the lists of CelebA and In-Shop."""
    if len(records) > 1 and len(records[0][1]) == 1 and records[0][1][0].isdecimal() and len(records[1][1]) > 1:
        return int(records.pop(0)[1][0])
    return None


def _without_comments(records: list[Record], problems: Problems) -> list[Record]:
    """Removes comment lines.

    A comment begins with #, has fewer or more cells than the other lines, and its first cell is not an image file.
    """
    plain = next((cells for _, cells in records if not cells[0].startswith("#")), records[0][1])
    comments = {
        line
        for line, cells in records
        if cells[0].startswith("#") and len(cells) != len(plain) and not _is_image_file(cells[0])
    }
    if comments:
        problems.note(f"{_left_out(len(comments), 'comment line')}, such as line {min(comments)}")
    kept = [record for record in records if record[0] not in comments]
    (line, first), *rest = kept
    if first[0].startswith("#") and names_an_image(_uncommented(first)):  # a header as numpy.savetxt writes it
        return [(line, _uncommented(first)), *rest]
    return kept


def _with_header(separator: str, records: list[Record], problems: Problems) -> CsvTable:
    (first_line, first), *rest = records
    table = CsvTable(separator, tuple(first), first_line, [line for line, _ in rest], [cells for _, cells in rest])
    if names_an_image(first):
        return table
    if rest and all(len(cells) == len(first) + 1 and _is_image_file(cells[0]) for _, cells in rest):
        problems.note("the header does not name the first column; it is read as the image column")
        return replace(table, header=(IMAGE, *first))
    if len(first) > 1 and first[-1] in ("0", "1", "2"):
        return CsvTable(separator, (), first_line, [line for line, _ in records], [cells for _, cells in records])
    cells = ", ".join(map(repr, first[:6])) + (", ..." if len(first) > 6 else "")
    raise problems.refusal(
        f"read as {cells}: neither a header with a column 'image' (or path, filename, ...), nor a row without a "
        "header, which ends in a split 0, 1 or 2; name the columns in a header such as "
        f"{separator.join((IMAGE, 'identity'))!r} (the separator must be {_SEPARATORS_TRIED})",
        first_line,
    )


def _is_image_file(cell: str) -> bool:
    return Path(cell).suffix.lower() in IMAGE_SUFFIXES


def _without_repeated_headers(table: CsvTable, problems: Problems) -> CsvTable:
    """Removes repeated headers, as in files that were joined."""
    header = [name.lower() for name in table.header]
    repeated = [i for i, cells in enumerate(table.rows) if header and [cell.lower() for cell in cells] == header]
    if repeated:
        lines = ", ".join(str(table.lines[i]) for i in repeated[:5])
        problems.note(f"the header is repeated on {counted(len(repeated), 'line')} ({lines}); the repeats are left out")
    return _without(table, repeated)


def _without_empty_rows(table: CsvTable, problems: Problems) -> CsvTable:
    empty = [i for i, cells in enumerate(table.rows) if not any(cells)]
    if empty:
        problems.note(f"{_left_out(len(empty), 'empty row')}, such as line {table.lines[empty[0]]}")
    return _without(table, empty)


def _left_out(number: int, noun: str) -> str:
    return f"{counted(number, noun)} {'was' if number == 1 else 'were'} left out"


def _without(table: CsvTable, left_out: list[int]) -> CsvTable:
    if not left_out:
        return table
    kept = sorted(set(range(len(table.rows))) - set(left_out))
    return replace(table, lines=[table.lines[i] for i in kept], rows=[table.rows[i] for i in kept])


def _without_empty_ends(table: CsvTable, problems: Problems) -> CsvTable:
    """Removes empty last cells that only the header or only the rows have."""
    width, widest = len(table.header), max(map(len, table.rows))
    if not table.header:
        return table
    if widest < width and not any(table.header[widest:]):
        problems.note("the header ends in a separator that the rows lack; its empty last cells are left out")
        return replace(table, header=table.header[:widest])
    if all(len(cells) == width + 1 and not cells[-1] for cells in table.rows):
        problems.note("every row ends in a separator that the header lacks; the empty last cells are left out")
        return replace(table, rows=[cells[:-1] for cells in table.rows])
    return table


def _without_row_names(table: CsvTable, problems: Problems) -> CsvTable:
    """Removes row names, as written by R: a first column that the header does not name.

    Row names are unique. If the images are not in the first column, repeated numbers may be halves of decimal numbers
    with a comma.
    """
    if not table.header or not all(len(cells) == len(table.header) + 1 for cells in table.rows):
        return table
    image = next(place for place, name in enumerate(table.header) if names_an_image([name]))
    unique = len({cells[0] for cells in table.rows}) == len(table.rows)
    if all(is_whole(cells[0]) for cells in table.rows) and (unique or image == 0):
        what = "a row index"
    elif unique and all(_is_image_file(cells[image + 1]) for cells in table.rows):
        what = f"row names such as {table.rows[0][0]!r}"
    else:
        return table
    problems.note(f"the header does not name the first column; it holds {what} and is left out")
    return replace(table, rows=[cells[1:] for cells in table.rows])


def _even_rows(table: CsvTable, problems: Problems) -> CsvTable:
    """Removes ragged rows, which become problems.

    Raises:
      ManifestError: if all rows are ragged.
    """
    width = len(table.header or table.rows[0])
    names = ", ".join(name or "(unnamed)" for name in table.header) or f"as on line {table.header_line}"
    ragged = [i for i, cells in enumerate(table.rows) if len(cells) != width]
    for i in ragged:
        problems.add(table.lines[i], f"{counted(len(table.rows[i]), 'cell')} where {width} are expected ({names})")
    if len(ragged) == len(table.rows):
        widths = Counter(map(len, table.rows)).most_common()
        found = [f"{counted(rows, 'row')} of {counted(cells, 'cell')}" for cells, rows in widths]
        raise problems.refusal(
            f"the header has {counted(width, 'cell')} and no row has as many: {some_of(found)}; name each column in "
            "the header, use one separator in the whole file, and quote cells that contain it, such as decimal commas"
        )
    return _without(table, ragged)
