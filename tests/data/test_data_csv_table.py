"""Reading text as a table: all separators, headers and line ends, without losing a line."""

import bz2
import contextlib
import csv
import gzip
import io
import json
import re
import zipfile

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from jaxmetric.data import ManifestError
from jaxmetric.data.csv_table import IMAGE_NAMES, SEPARATORS, read_table
from jaxmetric.data.problems import Problems


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("list") / "list.csv"


def read(path, text):
    """Returns the table and the problems of a text or of bytes."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    problems = Problems(path)
    return read_table(path, problems), problems


def refused(path, text):
    """Returns the message of a refusal without the folder."""
    with pytest.raises(ManifestError) as caught:
        read(path, text)
    return str(caught.value).replace(f"{path.parent}/", "")


# Text without line breaks; a cell is read without the spaces around it.
words = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=6).filter(
    lambda word: not word.startswith("#")
)
spellings = st.sampled_from([str, str.upper, str.title, lambda name: name.replace("_", " ")])


@st.composite
def tables(draw):
    """Draws a header that names an image column, and rows with the same number of cells."""
    image = draw(spellings)(draw(st.sampled_from(sorted(IMAGE_NAMES))))
    others = draw(st.lists(words.filter(lambda name: not set(name) & set(SEPARATORS)), min_size=1, max_size=3))
    header = draw(st.permutations([image, *others]))
    rows = draw(st.lists(st.lists(words, min_size=len(header), max_size=len(header)), min_size=1, max_size=6))
    repeats_header = [list(map(str.lower, row)) == list(map(str.lower, header)) for row in rows]
    assume(not any(repeats_header))
    return header, rows


@given(
    tables(),
    st.sampled_from(sorted(SEPARATORS)),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_a_table_is_read_back_from_any_separator_line_end_and_encoding(
    path, table, separator, end, code, quoting, last
):
    header, rows = table
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=separator, lineterminator=end, quoting=quoting).writerows([header, *rows])
    read_back, problems = read(path, text.getvalue().removesuffix("" if last else end).encode(code))
    assert read_back.separator == separator
    assert list(read_back.header) == header
    assert read_back.rows == rows
    assert read_back.lines == list(range(2, len(rows) + 2))
    assert not problems.lines()
    assert not problems.notes


fragments = st.sampled_from(
    ['"', ",", "a.png", "x", "#", " ", "\t", "\n", "\r\n", "\r", "\ufeff", "image,who", "\n\n", ";"]
)


@given(st.lists(fragments, max_size=40).map("".join))
@example('a.png,"x\nb.png,y\nc.png,z"\nd.png,w')
@example('a.png,"x\nb.png,y')
@example("a.png,x\nimage,who\n# on, and, on\n,\n\n  \nb.png,y,\n")
@settings(max_examples=300, deadline=None)
def test_no_line_is_lost(path, text):
    """Every line is a row, bad, empty, a comment or a header."""
    text = "image,who\n" + text
    path.write_bytes(text.encode())
    problems = Problems(path)
    try:
        table = read_table(path, problems)
    except ManifestError as error:
        assert "there is no row below" in str(error) or "no row has as many" in str(error)  # noqa: PT017
        lines = []
    else:
        lines = table.lines
    accounted = {1, *lines, *problems.bad_lines}
    lines = enumerate(io.StringIO(text.replace("\ufeff", ""), newline=""), 1)
    left_out = [line for number, line in lines if number not in accounted and line.strip(' "\t\r\n')]
    for line in left_out:
        assert line.strip(' ,"\t\r\n') == "" or line.lstrip(' "\t').startswith("#") or line.strip() == "image,who"
    assert not left_out or any("left out" in note for note in problems.notes)


@pytest.mark.parametrize(
    ("text", "header", "rows", "note"),
    [
        ("3\nimage_name  item_id\na.png  1\nb.png    2\nc.png 3  \n", ["image_name", "item_id"], 3, None),
        ("2\nMale Young\na.png  1 -1\nb.png -1  1\n", ["image", "Male", "Young"], 2, "header does not name the first"),
        (
            '"image" "who"\n"1" "a.png" "x"\n"2" "b.png" "y"\n',
            ["image", "who"],
            2,
            "first column; it holds a row index",
        ),
        ("image,who\na.png,x,\nb.png,y,\n", ["image", "who"], 2, "every row ends in a separator"),
        ("# by me, and you, today\nimage,who\n#\na.png,x\n", ["image", "who"], 1, "2 comment lines were left out"),
        ("# image,who\na.png,x\n", ["image", "who"], 1, None),
        ("image,who\n#1.png,x\n", ["image", "who"], 1, None),
        ("image,who\na.png,x\nImage,Who\nb.png,y\n", ["image", "who"], 2, r"header is repeated on 1 line \(3\)"),
        ("image,who\na.png,x\n,\n,\n", ["image", "who"], 1, "2 empty rows were left out, such as line 3"),
        ("image;age\na.png;31,5\nb.png;30,5\n", ["image", "age"], 2, None),
        ("my list.png,7,0\nb.png,7,0\n", [], 2, None),
        ("image,who,,\na.png,x\nb.png,y\n", ["image", "who"], 2, "header ends in a separator that the rows lack"),
        ('"image","who"\n"r1","a.png","x"\n"r2","b.png","x"\n', ["image", "who"], 2, "holds row names such as 'r1'"),
        ("image,who\n1,a.png,x\n1,b.png,y\n", ["image", "who"], 2, "it holds a row index"),
        ("who,image\n1,x,a.png\n2,y,b.png\n", ["who", "image"], 2, "it holds a row index"),
        ("who,image\nr1,x,a.png\nr2,x,b.png\n", ["who", "image"], 2, "holds row names such as 'r1'"),
        ("image,who\na.png,x\n# a comment\n#3.png,y\n", ["image", "who"], 2, "1 comment line was left out"),
        ("sep=;\nimage;who, when\na,1.png;x\n", ["image", "who, when"], 1, None),
        ('"sep=\t"\r\nimage\twho\r\na b.png\tx\r\n', ["image", "who"], 1, None),
    ],
)
def test_unusual_but_clear_tables_are_read_with_a_note(path, text, header, rows, note):
    table, problems = read(path, text)
    assert list(table.header) == header
    assert len(table.rows) == rows
    assert all(len(cells) == len(header or table.rows[0]) for cells in table.rows)
    assert not problems.lines()
    assert len(problems.notes) == (note is not None)
    assert re.search(note or "", "".join(problems.notes))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            'image,who\na.png,"x\nb.png,y"\n',
            "list.csv:2: the quote opened here is closed on line 3; a cell cannot contain",
        ),
        ('image,who\na.png,x\nb.png,"y\n', "list.csv:3: the quote opened here is never closed"),
        ('image,who\na.png,"x"y\n', "list.csv:2: broken quotes or cells"),
        ("image,who\na.png,x\nb.png\n", "list.csv:3: 1 cell where 2 are expected (image, who)"),
        (
            "3\nimage who\na.png x\nb.png y\n",
            "list.csv:1: says that 3 rows follow, but 2 do; correct or remove this line",
        ),
    ],
)
def test_broken_lines_are_problems(path, text, problem):
    """They are counted, alone or beside a good row."""
    path.write_text(text)
    problems = Problems(path)
    with contextlib.suppress(ManifestError):
        read_table(path, problems)
    assert problems.lines()[0].replace(f"{path.parent}/", "").startswith(problem)


def test_a_row_whose_image_begins_with_a_hash_is_not_a_comment(path):
    _, problems = read(path, "image,who\na.png,x\n#3.png,y,\n# by me, and you, today\n")
    assert [line.split(":", 1)[1] for line in problems.lines()] == ["3: 3 cells where 2 are expected (image, who)"]
    assert "1 comment line was left out, such as line 4" in problems.notes[0]


@given(st.lists(st.sampled_from([1, 3, 4, 5]), min_size=1, max_size=20), st.sampled_from(",;\t|"))
@settings(max_examples=60, deadline=None)
def test_a_list_with_only_ragged_rows_is_refused_with_their_widths(path, widths, separator):
    """All rows are counted, and the separator and the header are named."""
    text = f"image{separator}who\n" + "".join(separator.join(["x"] * width) + "\n" for width in widths)
    message = refused(path, text)
    first, *lines = message.splitlines()
    assert first.startswith("list.csv: the header has 2 cells and no row has as many: ")
    assert f"(read as: separator {SEPARATORS[separator]}; header: image, who)" in first
    for width in set(widths):
        assert f"{widths.count(width)} row{'s' * (widths.count(width) > 1)} of {width} cell" in first
    assert (
        lines[: len(widths)][:9]
        == [
            f"list.csv:{line}: {width} cell{'s' * (width > 1)} where 2 are expected (image, who)"
            for line, width in enumerate(widths, 2)
        ][:9]
    )


@pytest.mark.parametrize(
    "text",
    [
        "image,who\n0.png,3,0\n1.png,4,5\n",
        "image,who\nann lee,0.png,x\nann lee,1.png,y\n",  # not row names, which are unique
        "who,image\nSmith, John,0.png\nSmith, Ann,1.png\n",
        "age,image\n31,5,0.png\n31,0,1.png\n",
        "image\twho\n0.png,x\n1.png,y\n",
        "image,who\n0.png;x\n1.png;y\n",
        "image,who,age\n0.png,x\n1.png,y\n",
    ],
)
def test_rows_of_a_different_width_than_the_header_are_refused(path, text):
    assert "and no row has as many: " in refused(path, text)


@pytest.mark.parametrize("name", ["fname", "Filepaths", "images", "URI", "image uri", "file_names"])
def test_other_names_of_the_image_column_are_known(path, name):
    assert read(path, f"{name},who\na.png,x\n")[0].header == (name, "who")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "list.csv: the file is empty"),
        (b"image,who\na.png,\xe9\n", "list.csv: not a text file in UTF-8 (byte 16, line 2); save it as UTF-8"),
        ("image,who\na.png\0,x\n", "list.csv:2: contains a NUL character; save the list as UTF-8 text"),
        ('image,"who\nx"\na.png,x\n', "list.csv: the header on the first line cannot be read"),
        ("a.png:x\n", "such as 'image,identity' (the separator must be one of ',', ';', tab, '|', space)"),
        ("sep=:\nimage:who\na.png:x\n", "list.csv:1: the separator is ':', but it must be one of ',', ';', tab"),
        ('["image"]\n', "list.csv:1: read as '[\"image\"]': neither a header with a column 'image'"),
        ("place,who\na.png,x\n", "list.csv:1: read as 'place', 'who': neither a header"),
        ("image:who\na.png:x\n", "list.csv:1: read as 'image:who': neither a header with a column 'image' (or path"),
        ("a.png x\nb.png y\n", "(read as: separator space)"),
        ("a.png\tx\ttrain\n", "must be one of ',', ';', tab, '|', space) (read as: separator tab)"),
    ],
)
def test_a_refusal_shows_how_the_file_was_read(path, text, message):
    assert message in refused(path, text)


def zipped(*names, text=""):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, text)
    return file.getvalue()


RECORDS = [{"image": "a.png", "who": "x"}, {"image": "b.png", "who": "y"}]
TO_CSV = "write it as CSV, as pandas.DataFrame.to_csv(path, index=False) does"
OTHER_FILES = [
    (zipped("[Content_Types].xml", "xl/workbook.xml"), "an Excel sheet", "save it as CSV in UTF-8"),
    (
        zipped("mimetype", text="application/vnd.oasis.opendocument.spreadsheet"),
        "an OpenDocument sheet",
        "save it as CSV in UTF-8",
    ),
    (zipped("list.csv"), "a ZIP archive", "unpack it first"),
    (bytes.fromhex("d0cf11e0a1b11ae1") + bytes(99), "an old Excel sheet", "save it as CSV in UTF-8"),
    (gzip.compress(b"image,who"), "a compressed file", "unpack it first"),
    (bz2.compress(b"image,who"), "a compressed file", "unpack it first"),
    (b"PAR1" + bytes(9), "a Parquet file", TO_CSV),
    (json.dumps(RECORDS), "JSON", TO_CSV),
    (json.dumps(RECORDS, indent=2), "JSON", TO_CSV),
    (json.dumps({"image": ["a.png"], "who": ["x"]}), "JSON", TO_CSV),
    ("\n".join(map(json.dumps, RECORDS)), "JSON", TO_CSV),
    ("\n<!DOCTYPE html><html>", "HTML or XML", "download the list itself, or save it as CSV"),
]


@pytest.mark.parametrize(("text", "what", "cure"), OTHER_FILES, ids=range(len(OTHER_FILES)))
def test_the_type_of_a_file_that_is_not_csv_is_named(path, text, what, cure):
    assert refused(path, text) == f"list.csv: this is {what}, not a CSV file; {cure}"


@pytest.mark.parametrize("start", ["bzh9", "BZh9", "PAR1", "par1", "GIF89a", "gif8", "PK", "<a>", "{a}", "[1]", "html"])
def test_an_image_name_that_looks_like_a_file_signature_is_read(path, start):
    assert read(path, f"{start}.png,7,0\n")[0].rows == [[f"{start}.png", "7", "0"]]


def test_json_without_objects_and_folders_are_named(path):
    assert "this is JSON" in refused(path.with_suffix(".json"), '[["a.png", "x"]]')
    with pytest.raises(ManifestError, match="this is a folder, not a CSV file; name the CSV file that lists its"):
        read_table(path.parent, Problems(path.parent))
