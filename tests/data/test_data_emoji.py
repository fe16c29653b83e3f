"""The embedded data set: complete, fully crossed, and split correctly."""

import itertools
import json
import lzma
from importlib import resources

import numpy as np
import pytest
from PIL import Image

from jaxmetric.data import load_emoji_people
from jaxmetric.data.emoji_people import make

ALL = ("role", "gender", "skin", "vendor")


@pytest.fixture(scope="module")
def people():
    return load_emoji_people(columns=ALL)


def test_the_data_set_is_fully_crossed(people):
    assert [len(column.values) for column in people.columns] == [72, 3, 6, 2]
    assert not any(column.ordinal for column in people.columns)
    expected = set(itertools.product(range(72), range(3), range(6), range(2)))
    assert set(map(tuple, people.labels.tolist())) == expected
    assert len(people) == len(expected)


def test_the_images_differ_and_have_a_white_background(people):
    assert people.images.shape == (2592, 64, 64, 3)
    assert (people.images[:, 0, 0] == 255).all()
    assert len({image.tobytes() for image in people.images}) >= 2590  # two pairs of emoji are drawn alike


def test_skin_labels_match_the_brightness_of_images(people):
    """From medium-light on, darker skin means a darker image, which detects shuffled labels or images."""
    column = [c.name for c in people.columns].index("skin")
    brightness = people.images.mean(axis=(1, 2, 3))
    means = [brightness[people.labels[:, column] == s].mean() for s in range(2, 6)]
    assert means == sorted(means, reverse=True)


def test_columns_are_in_the_requested_order(people):
    chosen = load_emoji_people(columns=("skin", "role"))
    assert [c.name for c in chosen.columns] == ["skin", "role"]
    np.testing.assert_array_equal(chosen.labels, people.labels[:, [2, 0]])
    np.testing.assert_array_equal(chosen.split, people.split)


def test_within_holds_out_eight_images_of_each_role_evenly(people):
    for part, count in enumerate((28, 4, 4)):
        labels = people.labels[people.split == part]
        assert set(np.bincount(labels[:, 0])) == {count}
        for column in (1, 2, 3):
            assert len(set(np.bincount(labels[:, column]))) == 1


def test_disjoint_holds_out_whole_roles():
    people = load_emoji_people("disjoint", seed=3)
    roles = [set(people.labels[people.split == part, 0]) for part in range(3)]
    assert [len(part) for part in roles] == [48, 8, 16]
    assert len(set.union(*roles)) == 72
    assert (load_emoji_people("disjoint", seed=4).split != people.split).any()


def test_half_the_size_is_close_to_the_mean_of_four_pixels(people):
    small = load_emoji_people(size=32).images[::100]
    mean = people.images[::100].reshape(-1, 32, 2, 32, 2, 3).mean(axis=(2, 4))
    assert small.shape[1:] == (32, 32, 3)
    assert np.abs(small - mean).mean() < 4


def test_the_data_set_is_small_and_includes_its_licenses():
    folder = resources.files("jaxmetric.data.emoji_people")
    assert sum(len(file.read_bytes()) for file in folder.iterdir() if file.is_file()) < 6e6
    assert "Apache License" in (folder / "LICENSE-Apache-2.0.txt").read_text()
    assert "Attribution 4.0 International" in (folder / "LICENSE-CC-BY-4.0.txt").read_text()
    assert "Twitter" in (folder / "NOTICE.md").read_text()


def test_make_takes_complete_roles_and_composes_on_white(tmp_path):
    """Two toy packages: a runner and a farmer are complete, a singer lacks one image; facing right is no role."""

    def emoji(code, name):
        tones = {t.upper(): {"image": f"{code}-{t}.png"} for t in make.SKINS.values() if t}
        return {"image": f"{code}.png", "short_name": name, "skin_variations": tones}

    runner = [emoji(f"1f3c3{sign}", name) for sign, name in zip(make._SIGNS, ("man", "woman", "runner"), strict=True)]
    joined = {"1f33e": "farmer", "1f3a4": "singer", "1f33e-200d-27a1-fe0f": "farmer_facing_right"}
    others = [emoji(f"{adult}-200d-{thing}", joined[thing]) for thing in joined for adult in make._ADULTS]
    folders = {}
    for v, (vendor, word) in enumerate(make.VENDORS.items()):
        folders[vendor] = tmp_path / word
        images = folders[vendor] / "img" / word / "64"
        images.mkdir(parents=True)
        (folders[vendor] / "emoji.json").write_text(json.dumps(runner + others))
        for entry in runner + others:
            for file in make._files_by_skin(entry):
                Image.new("RGBA", (64, 64), (255, 0, 0, 128 * v)).save(images / file)
    (tmp_path / "twitter/img/twitter/64/1f468-200d-1f3a4-1f3ff.png").unlink()

    make.make(folders, tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as made:
        assert made["role"].tolist() == ["farmer", "runner"]
        assert made["shape"].tolist() == [2, 2, 3, 6, 64, 64, 3]
        assert made["files"][1, 1, 2] == "1f3c3-200d-2640-fe0f-1f3fc.png"
        pixels = lzma.decompress(made["pictures"].tobytes())
    assert pixels[:3] == bytes([255, 255, 255])  # transparent
    assert pixels[-3:] == bytes([255, 127, 127])  # half red


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "roles"}, "split must be 'within' or 'disjoint', got 'roles'"),
        ({"columns": ("age",)}, "columns must be some of vendor, role, gender, skin"),
        ({"columns": ()}, "columns must be some of"),
        ({"columns": "role"}, "columns must be some of"),
        ({"size": 0}, "image_size must be at least 1, got 0"),
        ({"size": 128}, "size must be at most 64"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_emoji_people(**arguments)
