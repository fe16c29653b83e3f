"""Duplicate images: one file under several names, and the same bytes in two files."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmetric.data.copies import content_keys, copies_across_splits, first_of_same_file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files a, b and x/c with different bytes, links to a, and a copy of a."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "x").mkdir()
    for i, name in enumerate(("a", "b", "x/c")):
        (folder / name).write_bytes(bytes([i]) * 10)
    (folder / "link").symlink_to(folder / "a")
    (folder / "folder").symlink_to(folder / "x")
    os.link(folder / "a", folder / "hard")
    (folder / "copy").write_bytes((folder / "a").read_bytes())
    return folder


NAMES = (
    "a",
    "b",
    "x/c",
    "link",
    "hard",
    "copy",
    "./a",
    "x/../a",
    "x//c",
    "folder/c",
    "folder/../a",
    "gone",
    "x/../gone",
)


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.booleans()), max_size=12))
@settings(max_examples=60, deadline=None)
def test_same_files_agree_with_os_path_samefile(folder, drawn):
    files = [folder / name if absolute else Path(os.path.relpath(folder / name)) for name, absolute in drawn]
    for i, first in enumerate(first_of_same_file(files)):
        same = [j for j in range(i + 1) if _same(files[i], files[j])]
        assert first == same[0]


def _same(one, other):
    if one.exists() and other.exists():
        return os.path.samefile(one, other)
    return os.path.abspath(one) == os.path.abspath(other)


@given(st.lists(st.tuples(st.binary(max_size=2), st.integers(0, 2)), max_size=8))
@settings(max_examples=40, deadline=None)
def test_content_keys_are_equal_if_and_only_if_bytes_are(tmp_path_factory, drawn):
    """Also if only bytes far from the start differ."""
    folder = tmp_path_factory.mktemp("contents")
    contents = [b"x" * 5000 * far + tail for tail, far in drawn]
    files = [folder / str(i) for i in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    keys = content_keys(files)
    for i in range(len(files)):
        assert [keys[i] == key for key in keys] == [contents[i] == content for content in contents]


def test_a_missing_file_equals_no_other(tmp_path):
    assert len(set(content_keys([tmp_path / "a", tmp_path / "b"]))) == 2


def test_copies_within_a_split_are_not_reported():
    assert copies_across_splits("ppqq", np.array([0, 0, 2, 2]), "abcd") is None
    line = copies_across_splits("pqpqp", np.array([0, 2, 0, 0, 3]), "abcde")
    assert line == "2 images have identical copies in more than one split, such as a (learning) and e (query)"
