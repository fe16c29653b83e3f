"""A source refuses inconsistent arrays and names them."""

import dataclasses

import numpy as np
import pytest

from jaxmetric.data import GALLERY, QUERY, SPLITS, LabelColumn, LabeledImages


def good():
    return LabeledImages(
        images=np.zeros((2, 4, 4, 3), np.uint8),
        labels=np.array([[0, -1], [1, 0]], np.int32),
        columns=(LabelColumn("who", ("ann", "bob")), LabelColumn("age", ("31",), ordinal=True)),
        split=np.array([0, 2], np.int8),
        names=("a", "b"),
    )


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"labels": np.zeros((2, 2))},
            TypeError,
            r"labels must be an array of integer codes, got float64; values, codes = np.unique",
        ),
        ({"labels": [[0, 0], [1, 0]]}, TypeError, "labels must be an array of integer codes, got list"),
        ({"labels": np.array([["ann"], ["bob"]])}, TypeError, "got <U3; values, codes = np.unique"),
        ({"labels": np.array([[0, 0], [1, None]])}, TypeError, "got object; values, codes = np.unique"),
        ({"labels": np.array([[2**40, 0], [1, 0]])}, ValueError, r"lie in \[-1, 1\], got 1 to 1099511627776; values"),
        ({"labels": np.array([[2**32, 0], [1, 0]])}, ValueError, "got 1 to 4294967296"),  # 0 in 32 bits
        ({"labels": np.zeros(2, int)}, ValueError, r"labels must be \[N, T\].*got \(2,\)"),
        ({"labels": np.zeros((2, 0), int)}, ValueError, r"at least one image and one column, got \(2, 0\)"),
        ({"labels": np.zeros((2, 3), int)}, ValueError, "labels have 3 columns, but 2 are described"),
        ({"labels": np.array([[2, 0], [0, 0]])}, ValueError, r"'who' must lie in \[-1, 1\], got 0 to 2"),
        ({"columns": (LabelColumn("x", ("1", "2")),) * 2}, ValueError, "column names must differ"),
        ({"split": np.zeros(2)}, TypeError, "split must be an array of integers, got float64"),
        ({"split": [0, 2]}, TypeError, "split must be an array of integers, got list"),
        ({"split": np.array([0, 256])}, ValueError, "split must hold 0"),  # 0 in 8 bits
        ({"split": np.zeros(3, int)}, ValueError, r"split must be \[2\].*got \(3,\)"),
        ({"split": np.array([0, 5])}, ValueError, r"split must hold 0 \(learning\), .*, 4 \(gallery\); got \[0 5\]"),
        ({"names": ("a",)}, ValueError, r"names must have one entry per row of labels \(2\), got 1"),
        ({"images": np.zeros((2, 4, 5, 3), np.uint8)}, ValueError, r"images must be \[N, S, S, 3\]"),
        ({"images": np.zeros((2, 4, 4, 3))}, TypeError, "images must be uint8, got float64"),
    ],
)
def test_inconsistent_arrays_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        dataclasses.replace(good(), **changes)


def test_size():
    assert (len(good()), good().image_size) == (2, 4)


def test_query_and_gallery_are_splits():
    assert SPLITS[QUERY] == "query"
    assert SPLITS[GALLERY] == "gallery"
    source = dataclasses.replace(good(), split=np.array([QUERY, GALLERY], np.int8))
    assert [SPLITS[code] for code in source.split] == ["query", "gallery"]
