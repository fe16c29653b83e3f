"""A listed name finds its file for any Unicode form of each part on disk."""

import itertools
import unicodedata

import pytest

from jaxmetric.data.image_files import image_file, spelled_out

FORMS = ("NFC", "NFD")


@pytest.mark.parametrize(("folder_form", "file_form"), list(itertools.product(FORMS, repeat=2)))
@pytest.mark.parametrize("listed", [*FORMS, "mixed"])
def test_each_part_is_found_in_either_form(tmp_path, folder_form, file_form, listed):
    parts = ("\u00e9t\u00e9", "\u1ea5 \ud55c.png")
    file = tmp_path / unicodedata.normalize(folder_form, parts[0]) / unicodedata.normalize(file_form, parts[1])
    file.parent.mkdir()
    file.touch()
    forms = ("NFD", "NFC") if listed == "mixed" else (listed, listed)
    name = "/".join(unicodedata.normalize(form, part) for form, part in zip(forms, parts, strict=True))
    assert image_file(tmp_path, name).samefile(file)
    assert image_file(tmp_path / "elsewhere", str(tmp_path / name)).samefile(file)


def test_an_exact_name_comes_first(tmp_path):
    names = [unicodedata.normalize(form, "\u00e9.png") for form in FORMS]
    for name in names:
        (tmp_path / name).touch()
    if len(list(tmp_path.iterdir())) == 2:  # some file systems treat both names as equal
        assert [image_file(tmp_path, name).name for name in names] == names


@pytest.mark.parametrize("name", ["a.png", "\u00e9.png", "\u00e9/" + 300 * "\u00e9", ""])
def test_a_missing_file_keeps_its_name(tmp_path, name):
    assert image_file(tmp_path, name) == tmp_path / name
    assert bool(spelled_out(name)) == (not name.isascii())
