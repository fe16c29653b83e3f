"""CSV manifests: what is read, what is said about it, and every way in which one can be wrong."""

import warnings

import numpy as np
import pytest
from PIL import Image

from jaxmetric.data import LazyPictures, ManifestError, ManifestWarning, SourceWarning, load_manifest

HEADER = "image,identity,age,split\n"
NO_LABEL = "no label column: a row needs an image and at least one label"
NO_FORMAT = (
    "neither a header with a column 'image' (or path, filename, ...), nor a row without a header, which ends in a "
    "split 0, 1 or 2; name the columns in a header"
)
READ_AS = "separator ','; header: image, identity, age, split"
NO_HEADER = "separator ','; header: none (filename, class_1 ... class_T, split)"


@pytest.fixture
def folder(tmp_path):
    """Pictures 0.png ... 7.png; picture i is grey of value 10 i."""
    for i in range(8):
        Image.new("L", (12, 10), 10 * i).save(tmp_path / f"{i}.png")
    return tmp_path


def write(folder, text, **options):
    (folder / "list.csv").write_text(text, **options)
    return folder / "list.csv"


def load(folder, text, **options):
    """The source, and what is said about it without the folder."""
    path = write(folder, text)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        source = load_manifest(path, **{"image_size": 4} | options)
    assert all(issubclass(warning.category, SourceWarning) for warning in caught)
    return source, [str(warning.message).replace(f"{path}: ", "") for warning in caught]


def problems(folder, text, **options):
    """The lines of the error without the folder."""
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


def test_a_header_gives_names_text_labels_and_missing_ones(folder):
    text = "Split,Image,identity,mood\ntrain,0.png,bob,\nLearning,1.png, bob ,gay\n\nval,2.png,,sad\n"
    text += "test,3.png,ann,sad\n2,4.png,ann,\n"
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


def test_without_a_split_the_pictures_are_split_by_the_seed(folder):
    text = "image,identity\n" + "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(8))
    path = write(folder, text)
    disjoint = load_manifest(path, split="disjoint", seed=1)
    np.testing.assert_array_equal(load_manifest(path, split="disjoint", seed=1).split, disjoint.split)
    assert all(len(set(disjoint.split[disjoint.labels[:, 0] == c])) == 1 for c in (0, 1))
    assert (np.bincount(load_manifest(path).split[::2], minlength=3)[0]) >= 1


def test_a_split_that_must_be_given_is_not_made_up(folder):
    assert problems(folder, "image,identity\n0.png,a\n1.png,a\n", split="given") == [
        "list.csv: split is 'given', but the file has no column 'split'; expected within or disjoint "
        "(read as: separator ','; header: image, identity)"
    ]
    given, _ = load(folder, "image,identity,split\n0.png,a,0\n1.png,a,2\n", split="given")
    np.testing.assert_array_equal(given.split, [0, 2])


def test_root_is_where_names_start(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    path = write(elsewhere, "image,who\n0.png,1\n1.png,1\n2.png,2\n3.png,2\n")
    assert len(load_manifest(path, root=folder)) == 4


def test_beyond_the_memory_budget_pictures_are_decoded_lazily(folder):
    text = "0.png,1,0\n1.png,1,0\n2.png,1,0\n"
    held, _ = load(folder, text, memory_budget=3 * 4 * 4 * 3)
    lazy, _ = load(folder, text, memory_budget=3 * 4 * 4 * 3 - 1)
    assert isinstance(held.images, np.ndarray)
    assert isinstance(lazy.images, LazyPictures)
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
        "list.csv:4: ordinal column 'age' takes integers, got 'x'",
        "list.csv:5: 3 cells where 4 are expected (image, identity, age, split)",
        "list.csv:6: gone.png: no such file as gone.png",
        "list.csv:7: text.png: not a picture that Pillow knows",
    ]
    assert found[4].startswith("list.csv:8: half.png: ")
    assert "truncated" in found[4]
    assert found[5:] == [
        "list.csv:9: 0.png is listed on line 2 already",
        "list.csv:10: split must be 0, 1, 2, learning, validation, test, query or gallery, got 'later'",
        f"read as: {READ_AS}; skip_bad (--skip-bad) leaves bad rows out",
    ]


def test_skip_bad_leaves_those_rows_out_and_counts_them(bad_folder):
    with pytest.warns(SourceWarning) as caught:
        source = load_manifest(write(bad_folder, BAD), ordinal=("age",), skip_bad=True)
    assert source.names == ("0.png", "1.png", "5.png", "6.png")
    assert source.columns[0].values == ("a", "d")
    left_out, *others = [warning.message for warning in caught]
    assert isinstance(left_out, ManifestWarning)
    assert str(left_out).startswith("left out 7 bad rows:")
    assert left_out.rows == len(left_out.problems) == 7
    assert ["identity has a single image of 1 of its 2 values, such as 'd'" in str(other) for other in others] == [
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
        ("0.png,0\n1.png,0\n", f"list.csv:1: {NO_LABEL} (read as: {NO_HEADER})"),
        ("0.png\n", f"list.csv:1: read as '0.png': {NO_FORMAT} (read as: separator ',')"),
        (
            "image,a,a,split\n0.png,1,1,0\n",
            "list.csv:1: column 'a' stands there twice (read as: separator ','; header: image, a, a, split)",
        ),
    ],
)
def test_files_of_no_use_are_refused(folder, text, message):
    assert problems(folder, text) == [message]


def test_a_missing_or_binary_file_is_refused(folder):
    with pytest.raises(ManifestError, match=r"nothing\.csv: no such file"):
        load_manifest(folder / "nothing.csv")
    with pytest.raises(ManifestError, match=r"0\.png: not a text file in UTF-8"):
        load_manifest(folder / "0.png")
    with pytest.raises(ManifestError, match="cannot be read"):
        load_manifest(folder)


def test_bad_arguments_are_refused(folder):
    text = HEADER + "0.png,a,1,0\n1.png,a,99999999,0\n"
    assert problems(folder, text, columns=("hat",)) == [
        f"list.csv: no column 'hat'; there are identity, age (read as: {READ_AS})"
    ]
    assert problems(folder, text, columns=("identity",), ordinal=("age",)) == [
        f"list.csv: no column 'age' to call ordinal; used are identity (read as: {READ_AS})"
    ]
    assert problems(folder, text, ordinal=("identity",)) == [
        f"list.csv: ordinal column 'identity' takes integers, has only such as 'a' (read as: {READ_AS})"
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
