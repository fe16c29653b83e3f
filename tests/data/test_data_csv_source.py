"""CSV manifests: the resulting sources, notes, and all errors."""

import os
import unicodedata
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxmetric.data import (
    GALLERY,
    QUERY,
    LazyImages,
    ManifestError,
    ManifestWarning,
    SourceWarning,
    describe,
    load_manifest,
)
from jaxmetric.data.label_values import MISSING_WORDS

HEADER = "image,identity,age,split\n"
NO_LABEL = "no label column: a row needs an image and at least one label"
NO_SPLIT = (
    "no label column: without a header the last column is taken as the split; if it holds the identity, add the header "
    "'{}'"
)
NO_FORMAT = (
    "neither a header with a column 'image' (or path, filename, ...), nor a row without a header, which ends in a "
    "split 0, 1 or 2; name the columns in a header such as 'image,identity' (the separator must be one of ',', ';', "
    "tab, '|', space)"
)
COMMA = "','"
READ_AS = "separator ','; header: image, identity, age, split"
NO_HEADER = "separator ','; header: none (filename, class_1 ... class_T, split)"


@pytest.fixture
def folder(tmp_path):
    """A folder with images 0.png ... 7.png; image i is gray with value 10 i."""
    for i in range(8):
        Image.new("L", (12, 10), 10 * i).save(tmp_path / f"{i}.png")
    return tmp_path


def write(folder, text, **options):
    (folder / "list.csv").write_text(text, **options)
    return folder / "list.csv"


def load(folder, text, **options):
    """Returns the source and the warnings without the folder."""
    path = write(folder, text)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        source = load_manifest(path, **{"image_size": 4} | options)
    assert all(issubclass(warning.category, SourceWarning) for warning in caught)
    return source, [str(warning.message).replace(f"{path}: ", "") for warning in caught]


def problems(folder, text, **options):
    """Returns the lines of the error without the folder."""
    with pytest.raises(ManifestError) as caught:
        load_manifest(write(folder, text), **options)
    return str(caught.value).replace(str(folder) + "/", "").splitlines()


def test_the_authors_format(folder):
    source, said = load(folder, "0.png,7,1,0\n1.png,7,0,0\n2.png,10,1,1\n3.png,10,1,2\n", image_size=6)
    assert [(c.name, c.values) for c in source.columns] == [("class_1", ("7", "10")), ("class_2", ("0", "1"))]
    np.testing.assert_array_equal(source.labels, [[0, 1], [0, 0], [1, 1], [1, 1]])
    np.testing.assert_array_equal(source.split, [0, 0, 1, 2])
    np.testing.assert_array_equal(source.images, np.full((4, 6, 6, 3), 10) * np.arange(4)[:, None, None, None])
    assert source.names == ("0.png", "1.png", "2.png", "3.png")
    assert said == [
        "no header: the first column is taken as the images, the last one as the split (0 learning, 1 validation, 2 "
        "test), the labels between them as class_1 ... class_2; name the columns in a header if that is wrong"
    ]


def test_without_a_header_the_split_is_a_number(folder):
    found = problems(folder, "0.png,7,1,0\n1.png,7,0,train\n2.png,10,1,3\n")
    assert found[:2] == [
        "list.csv:2: split must be 0, 1 or 2, without a header, got 'train'",
        "list.csv:3: split must be 0, 1 or 2, without a header, got '3'",
    ]


def test_a_header_gives_names_text_labels_and_missing_ones(folder):
    text = "Split,Image,identity,mood\ntrain,0.png,bob,\nLearning,1.png, bob ,gay\n\nval,2.png,,sad\n"
    text += "test,3.png,ann,sad\n2,4.png,ann,\n"
    with pytest.warns(SourceWarning, match="column 'Split' holds numbers: 0 is learning, 1 validation, 2 test"):
        source = load_manifest(write(folder, text, encoding="utf-8-sig"))
    assert [(c.name, c.values) for c in source.columns] == [("identity", ("ann", "bob")), ("mood", ("gay", "sad"))]
    np.testing.assert_array_equal(source.labels, [[1, -1], [1, 0], [-1, 1], [0, 1], [0, -1]])
    np.testing.assert_array_equal(source.split, [0, 0, 1, 2, 2])


def test_columns_choose_and_order_the_labels(folder):
    text = "image,a,b,c,split\n0.png,x,1,q,0\n1.png,x,1,r,0\n"
    source, _ = load(folder, text, columns=("b", "a"))
    assert [c.name for c in source.columns] == ["b", "a"]


def test_ordinal_codes_keep_differences(folder):
    text = HEADER + "0.png,a,30,0\n1.png,a,-2,0\n2.png,a,,0\n3.png,a,07,0\n"
    source, _ = load(folder, text, ordinal=("age",))
    assert source.columns[1].ordinal
    np.testing.assert_array_equal(source.labels[:, 1], [32, 0, -1, 9])
    assert [source.columns[1].values[code] for code in (32, 0, 9)] == ["30", "-2", "7"]


def test_without_a_split_the_images_are_split_by_the_seed(folder):
    text = "image,identity\n" + "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(8))
    path = write(folder, text)
    disjoint = load_manifest(path, split="disjoint", seed=1)
    np.testing.assert_array_equal(load_manifest(path, split="disjoint", seed=1).split, disjoint.split)
    assert all(len(set(disjoint.split[disjoint.labels[:, 0] == c])) == 1 for c in (0, 1))
    assert (np.bincount(load_manifest(path).split[::2], minlength=3)[0]) >= 1


def test_split_given_refuses_a_list_without_a_split(folder):
    assert problems(folder, "image,identity\n0.png,a\n1.png,a\n", split="given") == [
        "list.csv: split is 'given', but the file has no column 'split'; expected within or disjoint "
        "(read as: separator ','; header: image, identity)"
    ]
    given, _ = load(folder, "image,identity,split\n0.png,a,0\n1.png,a,2\n", split="given")
    np.testing.assert_array_equal(given.split, [0, 2])


def test_names_are_relative_to_root(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    path = write(elsewhere, "image,who\n0.png,1\n1.png,1\n2.png,2\n3.png,2\n")
    assert len(load_manifest(path, root=folder)) == 4


def test_beyond_the_memory_budget_images_are_decoded_lazily(folder):
    text = "0.png,1,0\n1.png,1,0\n2.png,1,0\n"
    held, _ = load(folder, text, memory_budget=3 * 4 * 4 * 3)
    lazy, _ = load(folder, text, memory_budget=3 * 4 * 4 * 3 - 1)
    assert isinstance(held.images, np.ndarray)
    assert isinstance(lazy.images, LazyImages)
    np.testing.assert_array_equal(np.stack([lazy.images[i] for i in range(3)]), held.images)


BAD = HEADER + (
    "0.png,a,1,0\n"
    "1.png,a,1,0\n"
    "2.png,b,x,0\n"  # 4: not an integer
    "3.png,b,1\n"  # 5: ragged
    "gone.png,a,1,0\n"  # 6
    "text.png,a,1,0\n"  # 7
    "half.png,a,1,0\n"  # 8
    "0.png,a,1,0\n"  # 9: listed already
    "4.png,c,1,later\n"  # 10
    "5.png,d,1,0\n"  # alone, and good
    "6.png,a,1,0\n"
)


@pytest.fixture
def bad_folder(folder):
    (folder / "text.png").write_text("hello")
    Image.effect_noise((99, 99), 60).save(folder / "whole.png")
    (folder / "half.png").write_bytes((folder / "whole.png").read_bytes()[:2000])
    return folder


def test_all_problems_are_raised_together_with_their_lines(bad_folder):
    found = problems(bad_folder, BAD, ordinal=("age",))
    assert found[:4] == [
        "list.csv:4: ordinal column 'age' must hold integers, got 'x'; leave the cell empty if it means missing",
        "list.csv:5: 3 cells where 4 are expected (image, identity, age, split)",
        "list.csv:6: gone.png: no such file as gone.png",
        "list.csv:7: text.png: not an image that Pillow knows",
    ]
    assert found[4].startswith("list.csv:8: half.png: ")
    assert "truncated" in found[4]
    assert found[5:] == [
        "list.csv:9: 0.png is already listed on line 2",
        "list.csv:10: split must be 0, 1, 2, learning, validation, test, query or gallery, got 'later'",
        f"read as: {READ_AS}; skip_bad (--skip-bad) leaves bad rows out",
    ]


def test_skip_bad_skips_and_counts_bad_rows(bad_folder):
    with pytest.warns(SourceWarning) as caught:
        source = load_manifest(write(bad_folder, BAD), ordinal=("age",), skip_bad=True)
    assert source.names == ("0.png", "1.png", "5.png", "6.png")
    assert source.columns[0].values == ("a", "d")
    left_out, *others = [warning.message for warning in caught]
    assert isinstance(left_out, ManifestWarning)
    assert str(left_out).startswith("left out 7 bad rows:")
    assert left_out.rows == len(left_out.problems) == 7
    assert ["1 of the 2 values of identity has only one image, such as 'd'" in str(other) for other in others] == [
        False,
        True,
        False,
    ]
    np.testing.assert_array_equal(source.images[:, 0, 0, 0], [0, 10, 50, 60])


def test_the_message_shows_ten_problems_and_counts_the_rest(folder):
    text = "".join(f"missing{i}.png,1,0\n" for i in range(25))
    found = problems(folder, text)
    assert len(found) == 12
    assert found[-2:] == ["... and 15 more", f"read as: {NO_HEADER}; skip_bad (--skip-bad) leaves bad rows out"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "list.csv: the file is empty"),
        ("\n \n", "list.csv: the file is empty"),
        (HEADER, f"list.csv: there is no row below the header (read as: {READ_AS})"),
        ("image,split\n0.png,0\n", f"list.csv:1: {NO_LABEL} (read as: separator ','; header: image, split)"),
        ("0.png,0\n1.png,0\n", f"list.csv:1: {NO_SPLIT.format('image,identity')} (read as: {NO_HEADER})"),
        (
            "0.png 0\n1.png 1\n2.png 7\n",
            f"list.csv:1: {NO_SPLIT.format('image identity')} (read as: {NO_HEADER.replace(COMMA, 'space')})",
        ),
        ("0.png\n", f"list.csv:1: read as '0.png': {NO_FORMAT} (read as: separator ',')"),
        (
            "image,a,a,split\n0.png,1,1,0\n",
            "list.csv:1: column 'a' is named twice (read as: separator ','; header: image, a, a, split)",
        ),
    ],
)
def test_unusable_files_are_refused(folder, text, message):
    assert problems(folder, text) == [message]


def test_a_missing_or_binary_file_is_refused(folder):
    with pytest.raises(ManifestError, match=r"nothing\.csv: no such file"):
        load_manifest(folder / "nothing.csv")
    with pytest.raises(ManifestError, match=r"0\.png: this is an image, not a CSV file; give"):
        load_manifest(folder / "0.png")
    with pytest.raises(ManifestError, match="this is a folder, not a CSV file; name the CSV file"):
        load_manifest(folder)


def test_bad_arguments_are_refused(folder):
    text = HEADER + "0.png,a,1,0\n1.png,a,99999999,0\n"
    assert problems(folder, text, columns=("hat",)) == [
        f"list.csv: no column 'hat'; the label columns are identity, age (read as: {READ_AS})"
    ]
    assert problems(folder, text, columns=("identity",), ordinal=("age",)) == [
        f"list.csv: ordinal names 'age', but the label columns in use are identity (read as: {READ_AS})"
    ]
    assert problems(folder, text, ordinal=("identity",)) == [
        "list.csv: ordinal column 'identity' must hold integers, but no value is one, such as 'a'; leave the cell "
        f"empty if it means missing (read as: {READ_AS})"
    ]
    assert "runs from 1 to 99999999" in problems(folder, text, ordinal=("age",))[0]
    for options, message in (
        ({"columns": ()}, "columns must name at least one"),
        ({"columns": "age"}, "columns must name at least one"),
        ({"columns": ("age", "age")}, "columns must differ"),
        ({"image_size": 0}, "image_size must be at least 1"),
        ({"resize": "fit"}, "resize must be 'crop' or 'squash', got 'fit'"),
        ({"split": "random"}, "split must be 'given', 'within' or 'disjoint', got 'random'"),
    ):
        with pytest.raises(ValueError, match=message):
            load_manifest(folder / "list.csv", **options)


def test_nothing_left_after_skipping_is_an_error(folder):
    with (
        pytest.warns(ManifestWarning, match="left out 1 bad row:"),
        pytest.raises(ManifestError, match="no row is left"),
    ):
        load_manifest(write(folder, "gone.png,1,0\n"), skip_bad=True)


ROWS = [(f"{i}.png", "ab"[i // 4], ("train", "train", "query", "gallery")[i % 4]) for i in range(8)]


def listed(header, row):
    """Writes a list of the eight rows; `row(i, name, who, split)` is a line of it."""
    return "\n".join([header, *(row(i, *cells) for i, cells in enumerate(ROWS))])


def oml(i, name, who, split):
    flags = "," if split == "train" else f"{split == 'query'},{split == 'gallery'}"
    return f"{who},{name},{'train' if split == 'train' else 'validation'},{flags}"


FORMS = {
    "semicolons": (
        listed("path;label;set", lambda i, *cells: ";".join(cells)),
        "label",
        "';'; images in 'path'; split in 'set'",
    ),
    "tabs": (
        listed("label\tFile Name\tPartition", lambda i, name, who, split: f"{who}\t{name}\t{split}"),
        "label",
        "tab; images in 'File Name'; split in 'Partition'",
    ),
    "In-Shop": (
        listed("8\nimage_name  item_id  evaluation_status", lambda i, *cells: "      ".join(cells)),
        "item_id",
        "space; images in 'image_name'; split in 'evaluation_status'",
    ),
    "OML": (
        listed("label,path,split,is_query,is_gallery", oml),
        "label",
        "','; images in 'path'; split in 'split' and 'is_query' and 'is_gallery'",
    ),
    "pandas": (
        listed(",image,identity,split", lambda i, *cells: ",".join([str(i % 5), *cells])),
        "identity",
        "','; images in 'image'; split in 'split'",
    ),
    "SOP": (
        listed("image_id class_id path split", lambda i, name, who, split: f"{i + 7} {who} {name} {split}"),
        "class_id",
        "space; images in 'path'; split in 'split'",
    ),
}


@pytest.mark.parametrize(("text", "identity", "origin"), FORMS.values(), ids=FORMS)
def test_lists_in_other_formats_give_the_same_source(folder, text, identity, origin):
    source, said = load(folder, text)
    assert [(column.name, column.values) for column in source.columns] == [(identity, ("a", "b"))]
    assert source.names == tuple(name for name, _, _ in ROWS)
    np.testing.assert_array_equal(source.labels[:, 0], [0] * 4 + [1] * 4)
    np.testing.assert_array_equal(source.split, [0, 0, QUERY, GALLERY] * 2)
    assert source.origin == f"separator {origin}"
    assert describe(source).startswith("8 images, 2 identities: 4 learning, 2 query, 2 gallery\n")
    left_out = [line for line in said if "left out" in line]
    assert left_out == said
    assert len(said) == (identity == "class_id" or text.startswith(","))


SPLIT_CODES = {"train": 0, "val": 1, "test": 2}
WORDED = ["train", "train", "train", "test", "train", "test", "train", "train"]


@pytest.mark.parametrize(
    ("name", "words", "told"),
    [
        ("is_train", {"train": "1", "test": "0"}, "true is learning, false is test"),
        ("train", {"train": "True", "test": "False"}, "true is learning, false is test"),
        ("Is Test", {"train": "no", "test": "yes"}, "true is test, false is learning"),
        ("test", {"train": "0.0", "test": "1.0"}, "true is test, false is learning"),
        ("type", {"train": "train", "test": "test"}, "its values are all splits"),
        ("mode", {"train": "Training", "test": "Testing"}, "its values are all splits"),
        ("anything", {"train": "learn", "test": "test"}, "its values are all splits"),
        ("Usage", {"train": "Training", "test": "PrivateTest"}, None),
        ("Usage", {"train": "training", "test": "Private Test"}, None),
        ("data_split", {"train": "0", "test": "2"}, None),
        ("subset", {"train": "train", "test": "test"}, None),
        ("partition", {"train": "0", "test": "2"}, None),
    ],
)
def test_a_column_of_splits_is_recognized_under_any_name(folder, name, words, told):
    """A missing cell in it, in any spelling, is a bad row."""
    cells = [words[word] for word in WORDED]
    rows = [f"{image},{who},{cell}" for (image, who, _), cell in zip(ROWS, cells, strict=True)]
    source, said = load(folder, "\n".join([f"image,who,{name}", *rows]))
    assert [column.name for column in source.columns] == ["who"]
    np.testing.assert_array_equal(source.split, [SPLIT_CODES[word] for word in WORDED])
    numbered = f"column {name!r} holds numbers: 0 is learning, 1 validation, 2 test"
    taken = f"column {name!r} is taken as the split: {told}; name the labels with --columns if it is one of them"
    assert said == ([taken] if told else [numbered] if words["train"] == "0" else [])
    for missing in ("", "NA", "null", "none"):
        found = problems(folder, "\n".join([f"image,who,{name}", *rows[:2], f"2.png,a,{missing}", *rows[3:]]))
        assert found[0].startswith("list.csv:4: ")
        assert found[0].endswith(f"got {missing!r}")
        assert name in found[0]
    labels, _ = load(folder, "\n".join([f"image,who,{name}", *rows]), columns=("who", name))
    assert [column.name for column in labels.columns] == ["who", name]


def test_public_test_is_validation_and_private_test_is_test(folder):
    words = ["Training", "Training", "PublicTest", "PrivateTest"] * 2
    text = "".join(f"{n},{w},{word}\n" for (n, w, _), word in zip(ROWS, words, strict=True))
    np.testing.assert_array_equal(load(folder, "image,emotion,Usage\n" + text)[0].split, [0, 0, 1, 2] * 2)


@pytest.mark.parametrize("name", ["set", "is_train", "kind", "partition"])
def test_a_second_split_column_is_not_a_label(folder, name):
    words = ["01"[word == "train"] if name == "is_train" else word for word in WORDED]
    text = "".join(f"{n},{w},{word},{s}\n" for (n, w, s), word in zip(ROWS, words, strict=True))
    source, said = load(folder, f"image,who,{name},split\n" + text)
    assert [column.name for column in source.columns] == ["who"]
    assert said == [f"column {name!r} holds splits beside 'split' and is left out; --columns can name it"]
    source, _ = load(folder, f"image,who,{name},split\n" + text, columns=(name,))
    assert [column.name for column in source.columns] == [name]
    text = text.replace(",a,", ",").replace(",b,", ",")
    assert "kept as the only label; is it one?" in load(folder, f"image,{name},split\n" + text)[1][0]
    found = problems(
        folder,
        f"image,who,{name},phase\n" + "".join(f"{n},{w},{x},train\n" for (n, w, _), x in zip(ROWS, words, strict=True)),
    )
    assert f"columns {name!r} and 'phase' may both be the split; rename the right one 'split', or" in found[0]


@pytest.mark.parametrize(
    ("name", "values", "value"),
    [
        ("kind", ["train", "test", "extra"], "'extra' is not a split"),
        ("is_train", ["0", "1", "maybe"], "'maybe' is not a split"),
        ("is_train", ["0", "1", "2"], "'0' may not be a split"),
        ("set", ["0", "1", "2"], "'0' may not be a split"),
    ],
)
def test_a_label_that_may_be_the_split_is_noted(folder, name, values, value):
    text = f"image,who,{name}\n" + "".join(f"{n},{w},{values[i % 3]}\n" for i, (n, w, _) in enumerate(ROWS))
    source, said = load(folder, text)
    assert [column.name for column in source.columns] == ["who", name]
    assert [line for line in said if "is not a split" in line or "may not be a split" in line] == [
        f"column {name!r} is taken as a label, since its value {value}; rename the column 'split' if it is one"
    ]


@pytest.mark.parametrize(
    "names", [",", "Unnamed: 0.1,Unnamed: 0", "Unnamed: 0.2,Unnamed: 0.1,Unnamed: 0", ",Unnamed: 0,"]
)
def test_several_row_indices_are_left_out(folder, names):
    width = names.count(",") + 1
    text = f"{names},image,who\n" + "".join(f"{f'{i % 5},' * width}{n},{w}\n" for i, (n, w, _) in enumerate(ROWS))
    source, said = load(folder, text)
    assert [column.name for column in source.columns] == ["who"]
    assert len(said) == width
    assert all("is taken as a row index and left out" in line for line in said)


def test_only_ragged_rows_are_refused_even_with_skip_bad(folder):
    for text in ("image,who,age\n0.png,a\n1.png,b\n", "image,who\n0.png,3,0\n1.png,2,5\n"):
        for skip_bad in (False, True):
            assert "and no row has as many: 2 rows of " in problems(folder, text, skip_bad=skip_bad)[0]


def test_all_test_images_may_be_queries_and_gallery(folder):
    """OML marks the test images of SOP and CUB as both query and gallery."""
    rows = "".join(f"{w},{n},{'train,,' if s == 'train' else 'test,True,True'}\n" for n, w, s in ROWS)
    source, _ = load(folder, "label,path,split,is_query,is_gallery\n" + rows)
    np.testing.assert_array_equal(source.split, [0, 0, 2, 2] * 2)
    mixed = rows.replace("True,True", "True,False", 1)
    found = problems(folder, "label,path,split,is_query,is_gallery\n" + mixed)
    assert found[0] == (
        "list.csv:4: only one of is_query and is_gallery is true here, but both are on line 5; set both for every "
        "held-out image, or for none"
    )
    maybe = rows.replace("True,True", "maybe,True", 1).replace("train,,", "train,True,", 1)
    found = problems(folder, "label,path,split,is_query,is_gallery\n" + maybe)
    assert found[:2] == [
        "list.csv:2: is_query or is_gallery is true for a learning image",
        "list.csv:4: is_query must be true or false, got 'maybe'",
    ]
    assert "column 'is_query' also needs a column 'is_gallery'" in problems(folder, "path,who,is_query\n0.png,a,1\n")[0]


def test_a_list_of_only_test_images_is_read(folder):
    source, said = load(folder, "image,identity,split\n" + "".join(f"{n},{w},test\n" for n, w, _ in ROWS))
    assert set(source.split) == {2}
    assert said == []


missing_words = st.sampled_from(sorted(MISSING_WORDS))
values = st.sampled_from(["x", "y", "Na", "none", "-1", "0"])


@given(st.lists(st.tuples(values | missing_words | st.just(""), values | missing_words), min_size=8, max_size=8))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_missing_words_are_counted_by_column(folder, cells):
    assume(all(any(value and value not in MISSING_WORDS for value in column) for column in zip(*cells, strict=True)))
    text = "image,identity,mood\n" + "".join(f"{i}.png,{who},{mood}\n" for i, (who, mood) in enumerate(cells))
    source, said = load(folder, text)
    for place, column in enumerate(source.columns):
        written = [row[place] for row in cells]
        read = ["" if code < 0 else column.values[code] for code in source.labels[:, place]]
        assert read == ["" if value in MISSING_WORDS else value for value in written]
        count = sum(value in MISSING_WORDS for value in written)
        told = [line for line in said if line.startswith("taken as missing: ")]
        assert len(told) == any(value in MISSING_WORDS for row in cells for value in row)
        assert not count or f"{column.name} ({count} " in told[0]
        minus = sum(value == "-1" for value in written)
        assert (minus > 0) == any(
            line.startswith("-1 is read as a value, not as missing: ") and f"{column.name} ({minus} image" in line
            for line in said
        )
        alike = len(set(read) - {""}) < 2
        assert alike == any(line.startswith(f"column '{column.name}' has ") for line in said)


@given(st.lists(st.none() | st.integers(-(10**6), 10**6), min_size=8, max_size=8), st.booleans())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_integers_written_as_floats_are_integers(folder, numbers, wide):
    """pandas writes integers this way in a column with missing values."""
    numbers = [number if number is None or wide else number % 1000 for number in numbers]
    assume(not all(number is None for number in numbers))
    for form in ("{}", "{}.0", "{}."):
        cells = ["" if number is None else form.format(number) for number in numbers]
        text = "image,identity,age\n" + "".join(f"{i}.png,{'ab'[i % 2]},{cell}\n" for i, cell in enumerate(cells))
        source, _ = load(folder, text)
        column, codes = source.columns[1], source.labels[:, 1]
        assert [None if code < 0 else int(column.values[code]) for code in codes] == numbers
        if not wide:
            source, _ = load(folder, text, ordinal=("age",))
            known = [number for number in numbers if number is not None]
            assert list(source.labels[:, 1]) == [-1 if number is None else number - min(known) for number in numbers]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "image,identity,\n" + "".join(f"{n},{w},\n" for n, w, _ in ROWS),
            "column 3 (unnamed) has no value in any row and is left out; does the header end in a separator?",
        ),
        (
            "Unnamed: 0,image,identity\n" + "".join(f"{i}.0,{n},{w}\n" for i, (n, w, _) in enumerate(ROWS)),
            "column 1 (Unnamed: 0) is taken as a row index and left out; name it in the header if it is a label",
        ),
        (
            "index,image,identity\n" + "".join(f"{i},{n},{w}\n" for i, (n, w, _) in enumerate(ROWS)),
            "column 'index' numbers the rows and is left out; --columns can name it",
        ),
        (
            "image,identity,age\n" + "".join(f"{n},{w},\n" for n, w, _ in ROWS),
            "column 'age' has no value in any row and is left out",
        ),
        (
            "image,identity\n" + "".join(f"{n},me\n" for n, w, _ in ROWS),
            "column 'identity' has only the value 'me'; it distinguishes no images",
        ),
        (
            "image,identity\n" + "".join(f"{n},{'07' if w == 'a' else 7}\n" for n, w, _ in ROWS),
            "'07' and '7' are different values of identity; write them identically if they mean the same",
        ),
        *[
            (
                f"image,identity,mood\n0.png,a,{word}\n" + "".join(f"{n},{w},gay\n" for n, w, _ in ROWS[1:]),
                f"read as values, not as missing: mood (1 {word!r}); leave a cell empty if its value is missing",
            )
            for word in ("none", "Null", "na", "NAN", "<na>", "N/a", "#N/a n/a", "\u200b", "NA\u200b")
        ],
        *[
            (
                "image,identity\n" + "".join(f"{n},{other if w == 'a' else 'ann lee'}\n" for n, w, _ in ROWS),
                f"values of identity differ only in case, spaces or invisible characters, such as {other!r} and "
                "'ann lee', in 1 group; write them identically if they mean the same",
            )
            for other in (
                "Ann Lee",
                "ann  lee",
                "ann\u00a0lee",
                "ann lee\u200b",
                "ann\u00ad lee",
                "annlee",
                "ANN LEE\ufe0f",
            )
        ],
        (
            "image,identity,subset\n" + "".join(f"{n},{w},{'train' if w == 'a' else 'extra'}\n" for n, w, _ in ROWS),
            "column 'subset' is taken as a label, since its value 'extra' is not a split; rename the column 'split' "
            "if it is one",
        ),
        (
            "image,identity\n" + "".join(f"{n},{i // 2 if i < 6 else i}\n" for i, (n, _, _) in enumerate(ROWS)),
            "2 of the 5 values of identity have only one image, such as '6'; such images are kept for their other "
            "labels and for the gallery",
        ),
        (
            "image,number\n" + "".join(f"{n},{i}\n" for i, (n, _, _) in enumerate(ROWS)),
            "8 of the 8 values of number have only one image, such as '0'; such images are kept for their other labels "
            "and for the gallery; is number the identity? --columns names the label columns, identity first",
        ),
    ],
)
def test_every_assumption_is_one_warning(folder, text, said):
    assert load(folder, text)[1] == [said]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            ",image,age\nann,0.png,3\nbob,1.png,4\n",
            "column 1 (unnamed) has values, such as 'ann', but no name; name it",
        ),
        ("image,age,\n0.png,3,4\n1.png,4,5\n", "column 3 (unnamed) has values, such as '4', but no name; name it"),
        ("file,path,who\n0.png,1.png,a\n", "columns 'file' and 'path' may both hold the images; rename the right one"),
        ("image,who,set,phase\n0.png,a,train,test\n", "columns 'set' and 'phase' may both be the split; rename the"),
        ("image,who,split,Split\n0.png,a,0,0\n", "columns 'split' and 'Split' may both be the split; rename the right"),
    ],
)
def test_ambiguous_lists_are_refused(folder, text, message):
    assert message in problems(folder, text)[0]
    assert "(read as: separator ','; header: " in problems(folder, text)[0]


def test_a_column_named_by_the_caller_is_a_label(folder):
    text = "id,image,who,set\n" + "".join(f"{i},{n},{w},{'train'}\n" for i, (n, w, _) in enumerate(ROWS))
    source, _ = load(folder, text, columns=("who", "id", "set"))
    assert [column.name for column in source.columns] == ["who", "id", "set"]
    assert len(set(source.split)) > 1  # the column is not used as the split
    assert (
        "no column 'split'; the label columns are id, who"
        in problems(folder, text.replace("set", "split"), columns=("split",))[0]
    )


def test_composed_and_decomposed_values_are_equal(folder):
    two = {"a": "\u00e9", "b": "e\u0301"}
    text = "image,identity\n" + "".join(f"{n},{two[w]}\n" for n, w, _ in ROWS)
    assert load(folder, text)[0].columns[0].values == ("\u00e9",)


def test_large_identities_are_distinguished(folder):
    """The identities agree in 32 bits, or as float64."""
    for step in (2**32, 1):
        text = "image,identity\n" + "".join(f"{i}.png,{2**53 + i // 2 * step}\n" for i in range(8))
        source, _ = load(folder, text)
        np.testing.assert_array_equal(source.labels[:, 0], np.arange(8) // 2)


@pytest.mark.parametrize("other", ["./0.png", "sub/../0.png", "{folder}/0.png", "link.png", "hard.png", "0.png"])
def test_an_image_listed_under_two_names_is_refused(folder, other):
    (folder / "sub").mkdir()
    (folder / "link.png").symlink_to(folder / "0.png")
    os.link(folder / "0.png", folder / "hard.png")
    other = other.format(folder=folder)
    found = problems(folder, f"image,who,split\n0.png,a,train\n1.png,a,train\n{other},a,test\n")
    same = "0.png is already listed" if other == "0.png" else f"{other} is the same file as 0.png, which is listed"
    assert found[0].replace(f"{folder}/", "") == (f"list.csv:4: {same} on line 2".replace(f"{folder}/", ""))


def test_a_copy_in_another_split_is_noted(folder):
    (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    text = "image,who,split\n0.png,a,train\n1.png,a,train\n2.png,b,test\n"
    source, said = load(folder, text + "copy.png,b,test\n")
    assert said == ["1 image has identical copies in more than one split, such as 0.png (learning) and copy.png (test)"]
    assert load(folder, text + "copy.png,b,train\n3.png,b,test\n")[1] == []


NAMES = ["\u00e9t\u00e9 0.png", "\u1ea5/\u00e9.png", "\ud55c\uae00.png", "a/\u00fc.png"]
FORMS_OF_NAMES = {
    "NFC": lambda name: unicodedata.normalize("NFC", name),
    "NFD": lambda name: unicodedata.normalize("NFD", name),
    "folder decomposed": lambda name: "/".join(
        unicodedata.normalize("NFC" if i else "NFD", part) for i, part in enumerate(name.split("/"))
    ),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("listed", ["NFC", "NFD"])
@pytest.mark.parametrize("on_disk", FORMS_OF_NAMES)
def test_accents_may_be_composed_in_the_list_or_on_disk(folder, name, listed, on_disk):
    file = folder / FORMS_OF_NAMES[on_disk](name)
    file.parent.mkdir(exist_ok=True)
    (folder / "0.png").rename(file)
    written = FORMS_OF_NAMES[listed](name)
    for memory_budget in (1 << 20, 0):
        text = f"image,who\n{written},a\n1.png,a\n2.png,b\n3.png,b\n"
        source, said = load(folder, text, memory_budget=memory_budget)
        assert source.names[0] == written
        np.testing.assert_array_equal(np.stack(list(source.images))[:, 0, 0, 0], [0, 10, 20, 30])
        assert said == []
    other = FORMS_OF_NAMES["NFD" if listed == "NFC" else "NFC"](name)
    found = problems(folder, f"image,who\n{written},a\n{other},a\n")
    assert found[0] == f"list.csv:3: {other} is the same file as {written}, which is listed on line 2"


def test_the_error_for_a_missing_file_spells_out_accents(folder):
    found = problems(folder, "image,who\ne\u0301.png,a\n\u00e9/0.png,a\n")
    tried = "composed and decomposed accents were tried"
    assert found[0].endswith(
        rf"no such file as e\u0301.png (spelled 'e\u0301.png'; {tried})".replace("as e\\u0301", "as e\u0301")
    )
    assert rf"(spelled '\xe9/0.png'; {tried})" in found[1]


def test_empty_image_names_and_backslashes_are_explained(folder):
    assert problems(folder, "image,who\n,a\nsub\\0.png,a\n1.png,a\n")[:2] == [
        "list.csv:2: no image is named",
        "list.csv:3: sub\\0.png: no such file as sub\\0.png (its name has backslashes; write /)",
    ]


def test_an_id_that_does_not_count_the_rows_is_a_label(folder):
    text = "id,image,who\n" + "".join(f"{i // 2},{n},{w}\n" for i, (n, w, _) in enumerate(ROWS))
    source, said = load(folder, text)
    assert [column.name for column in source.columns] == ["id", "who"]
    assert said == []


COLUMN_ORDERS = [
    (("age", "identity"), "identity", "age", "identity age"),
    (("age", "mood", "Person ID"), "Person ID", "age", "'Person ID' age mood"),
    (("label", "identity"), "identity", "label", "identity label"),  # this name takes precedence
    (("identity", "label", "class"), None, None, None),
    (("class_id", "super_class_id", "item_id"), None, None, None),
    (("species", "order"), None, None, None),
    (("a", "b", "c", "d", "e", "pid"), "pid", "a", "pid a b c d ..."),
]


@pytest.mark.parametrize(("names", "called", "first", "cure"), COLUMN_ORDERS)
def test_an_identity_that_is_not_the_first_label_is_noted(folder, names, called, first, cure):
    """The order of the columns still decides."""
    text = "".join(
        ",".join([n, *[f"{t}{(i + t) // 4}" for t in range(len(names))]]) + "\n" for i, (n, _, _) in enumerate(ROWS)
    )
    source, said = load(folder, f"image,{','.join(names)}\n" + text)
    assert [column.name for column in source.columns] == list(names)
    told = [line for line in said if "is taken as the identity" in line]
    assert told == [
        f"the first label column, {first!r}, is taken as the identity, though another one is called {called!r}; "
        f"write --columns {cure} if that is the identity"
    ] * (called is not None)
    _, said = load(folder, f"image,{','.join(names)}\n" + text, columns=names)
    assert not any("is taken as the identity" in line for line in said)


@pytest.mark.parametrize("name", ["split", "Split", "partition"])
@pytest.mark.parametrize("numbers", ["01", "0", "1", "02", "012", "12"])
@pytest.mark.parametrize("others", [(), ("train",)])
def test_numbers_of_a_split_are_noted(folder, name, numbers, others):
    """If they may be those of CUB (1 for training, 0 for test), the note says what to do."""
    cells = [*numbers, *others]
    text = "".join(f"{n},{w},{cells[i % len(cells)]}\n" for i, (n, w, _) in enumerate(ROWS))
    source, said = load(folder, f"image,who,{name}\n" + text)
    codes = {"train": 0, "0": 0, "1": 1, "2": 2}
    np.testing.assert_array_equal(source.split, [codes[cells[i % len(cells)]] for i in range(8)])
    cure = "; if 1 marks the images to learn from, as in CUB, rename the column 'is_train'"
    assert said == [
        f"column {name!r} holds numbers: 0 is learning, 1 validation, 2 test"
        + cure * ("1" in numbers and "2" not in numbers)
    ]


@pytest.mark.parametrize("words", [("",), ("NA",), ("", "nan")])
def test_a_label_column_without_a_value_is_ignored_or_refused_if_named(folder, words):
    text = "".join(f"{n},{words[i % len(words)]},{w},0\n" for i, (n, w, _) in enumerate(ROWS))
    source, said = load(folder, "image,mood,who,split\n" + text)
    assert [column.name for column in source.columns] == ["who"]
    assert "column 'mood' has no value in any row and is left out; the identity is 'who' then" in said
    source, said = load(folder, text)
    assert [column.name for column in source.columns] == ["class_2"]
    assert "column 'class_1' has no value in any row and is left out; the identity is 'class_2' then" in said
    refusal = "list.csv:1: label column {!r} has no value in any row; fill it, or leave it out of the label columns"
    for found in (
        problems(folder, "image,mood,who,split\n" + text, columns=("who", "mood")),
        problems(folder, "image,mood,split\n" + "".join(f"{n},{words[0]},0\n" for n, _, _ in ROWS)),
    ):
        assert found[0].startswith(refusal.format("mood"))
    assert problems(folder, text, columns=("class_1", "class_2"))[0].startswith(refusal.format("class_1"))


@pytest.mark.parametrize("names", ["filename,image,who", "image,path,who", "who,files,path"])
def test_a_second_column_with_an_image_name_is_noted(folder, names):
    """The list names images in both columns."""
    image, other = {"filename,image,who": ("image", "filename"), "image,path,who": ("image", "path")}.get(
        names, ("path", "files")
    )
    text = "\n".join([names, *(",".join(w if name == "who" else n for name in names.split(",")) for n, w, _ in ROWS)])
    source, said = load(folder, text)
    assert f"images in {image!r}" in source.origin
    assert (
        f"column {image!r} is taken as the images and column {other!r} as a label; name the label columns with "
        "--columns if it is none"
    ) in said
    assert load(folder, text, columns=("who",))[1] == []


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (["?", "20", "30"], "'?' is a value"),
        (["20", "30", "x"], "'x' is a value"),
        (["-", "unknown", "2.5", "3"], "'-' and 'unknown' are values"),
        (["20", "30", "40"], None),
        (["young", "old", "30", "40"], None),
        (["young", "?"], None),
        (["?", "1"], None),
    ],
)
def test_other_values_among_numbers_are_noted(folder, values, told):
    text = "".join(f"{n},{w},{values[i % len(values)]}\n" for i, (n, w, _) in enumerate(ROWS))
    means = "it means" if "is a value" in (told or "") else "they mean"
    line = f"{told} of age, and all others are numbers; leave the cell empty if {means} missing"
    assert load(folder, "image,who,age\n" + text)[1] == [line] * (told is not None)


@pytest.mark.parametrize(
    ("value", "cure"),
    [
        ("?", "leave the cell empty if it means missing"),
        ("unknown", "leave the cell empty if it means missing"),
        ("20.5", "round it"),
        ("20,5", "round it; the comma is read as a decimal comma"),
        ("1.23457E+17", "write all its digits, at most 18"),
        ("1234567890123456789", "write its digits alone, at most 18"),
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_an_ordinal_value_that_is_not_an_integer_is_explained(folder, value, cure, alone):
    text = f'0.png,a,"{value}"\n' + "".join(f"{n},{w},{'' if alone else i}\n" for i, (n, w, _) in enumerate(ROWS[1:]))
    found = problems(folder, "image,who,age\n" + text, ordinal=("age",))[0]
    if alone:
        what = "list.csv: ordinal column 'age' must hold integers, but no value is one"
        assert found.startswith(f"{what}, such as {value!r}; {cure} (read as")
    else:
        assert found == f"list.csv:2: ordinal column 'age' must hold integers, got {value!r}; {cure}"


@pytest.mark.parametrize("value", ["1.23457E+17", "1,23457E+17", "1e+17", "1.2345678901234568e+17"])
def test_numbers_rounded_by_a_spreadsheet_are_noted(folder, value):
    text = "".join(f"{n};{value if w == 'a' else '4E+15'}\n" for n, w, _ in ROWS)
    said = [line for line in load(folder, "image;pid\n" + text)[1] if "scientific" in line]
    assert said == [
        f"pid has numbers in scientific notation, such as {value!r} (8 images), as spreadsheets write long numbers, "
        "which they round: different ones can become one; format the column as text and save it again"
    ]
    text = "".join(f"{n};{'12e4' if w == 'a' else '7e15'}\n" for n, w, _ in ROWS)  # hexadecimal
    assert load(folder, "image;pid\n" + text)[1] == []
