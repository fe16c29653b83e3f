"""TFDS sources, on a tiny data set written as array_record without TensorFlow."""

import pickle
import re
import warnings
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from jaxmetric.data import GALLERY, QUERY, ImageError, SourceWarning, describe, load_tfds

tfds = pytest.importorskip("tensorflow_datasets")


def encoded(value):
    buffer = BytesIO()
    Image.new("L", (12, 10), value).save(buffer, "PNG")
    buffer.seek(0)
    return buffer


class TinyPeople(tfds.core.GeneratorBasedBuilder):
    """A data set with six training and three test images."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=["zoe", "ann"]),
            "age": np.int64,
            "town": tfds.features.Text(),
            "size": np.float32,
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0, 6), "test": self._generate_examples(6, 9)}

    def _generate_examples(self, start, stop):
        for i in range(start, stop):
            town = "" if i == 0 else f"town {i % 3}"
            yield i, {"image": encoded(i * 9), "label": i % 2, "age": i // 2 * 10 - 1, "town": town, "size": 0.0}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    TinyPeople(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_images_labels_and_the_given_split(data_dir):
    with pytest.warns(SourceWarning, match=r"^tiny_people: taken as missing: age \(2 -1\)$"):
        source = load_tfds("tiny_people", label_keys=("label", "age", "town"), data_dir=data_dir, image_size=5)
    values = [image[0, 0, 0] // 9 for image in map(source.images.__getitem__, range(9))]
    assert sorted(values) == list(range(9))
    assert source.image_size == 5
    np.testing.assert_array_equal(source.split, [0] * 6 + [2] * 3)
    assert [c.name for c in source.columns] == ["label", "age", "town"]
    assert source.columns[1].values == ("9", "19", "29", "39")
    for i, value in enumerate(values):
        label, age, town = (
            None if code < 0 else column.values[code]
            for code, column in zip(source.labels[i], source.columns, strict=True)
        )
        assert label == ("zoe", "ann")[value % 2]
        assert age == (None if value < 2 else str(value // 2 * 10 - 1))  # -1 is missing
        assert town == (None if value == 0 else f"town {value % 3}")  # empty is missing
    assert source.names[0] == "train[0]"
    assert source.names[-1] == "test[2]"


class TinyLists(tfds.core.GeneratorBasedBuilder):
    """A data set with query and gallery, an unknown split, a copied image and a missing word."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "who": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        whos = {"train": ("ann", "ann", "NA"), "query": ("bob",), "gallery": ("bob", "eve"), "extra": ("sue",)}
        return {split: self._generate_examples(split, who) for split, who in whos.items()}

    def _generate_examples(self, split, whos):
        for i, who in enumerate(whos):
            value = 0 if i == 0 and split in ("train", "query") else 10 * len(split) + i
            yield i, {"image": encoded(value), "who": who}


def test_doubts_about_a_data_set_are_noted(tmp_path):
    TinyLists(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        source = load_tfds("tiny_lists", label_keys=("who",), data_dir=tmp_path)
    said = "\n".join(sorted(str(warning.message) for warning in caught))
    assert len(caught) == 4
    assert "tiny_lists: taken as missing: who (1 NA)" in said
    assert "tiny_lists: 1 split of another name left out: extra; known names are learning, " in said
    assert re.search("tiny_lists: .*only one image.*'eve'", said)
    assert re.search(r"tiny_lists: .*more than one split.*train\[", said)
    assert sorted(source.columns[0].values) == ["ann", "bob", "eve"]
    assert sorted(source.split) == [0, 0, 0, QUERY, GALLERY, GALLERY]
    assert "3 learning, 1 query, 2 gallery\ncolumns: who (3, 1 missing); TFDS tiny_lists/1.0.0" in describe(source)


def test_a_feature_that_is_not_an_8_or_16_bit_image_is_refused(data_dir, monkeypatch):
    with pytest.raises(ValueError, match="'town' must be an image of 8 or 16 bits, got Text of"):
        load_tfds("tiny_people", label_keys=("label",), image_key="town", data_dir=data_dir)
    monkeypatch.setattr(tfds.features.Image, "np_dtype", property(lambda feature: np.float32))  # kept in 4 bytes
    with pytest.raises(ValueError, match=r"'image' must be an image of 8 or 16 bits, got Image of .*float32"):
        load_tfds("tiny_people", label_keys=("label",), data_dir=data_dir)


def test_images_can_be_pickled_and_report_a_lost_file(tmp_path):
    TinyPeople(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    images = load_tfds("tiny_people", label_keys=("label",), data_dir=tmp_path, image_size=5).images
    sent = pickle.dumps(images)
    copy = pickle.loads(sent)
    assert all((copy[i] == images[i]).all() for i in range(9))
    for file in tmp_path.rglob("*.array_record*"):
        file.unlink()
    with pytest.raises(ImageError, match=r"^test\[0\]: .*[Nn]o such file") as caught:
        pickle.loads(sent)[6]
    assert "\n" not in str(caught.value)


def test_disjoint_pools_the_splits_and_holds_out_classes(data_dir):
    source = load_tfds("tiny_people", label_keys=("town",), data_dir=data_dir, split="disjoint")
    classes = source.labels[:, 0]
    assert all(len(set(source.split[classes == c])) == 1 for c in range(3))
    assert set(source.split) == {0, 2}


def test_the_error_for_an_unprepared_set_has_the_command(data_dir, tmp_path):
    for name in ("tiny_people", "mnist"):
        command = rf"tfds build {name} --file_format=array_record --data_dir={tmp_path}"
        with pytest.raises(ValueError, match=command) as caught:
            load_tfds(name, label_keys=("label",), data_dir=tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "no_such_set"}, "'no_such_set' cannot be opened: Dataset no_such_set not found"),
        ({"name": "tiny_people:9.9.9"}, "'tiny_people:9.9.9' cannot be opened"),
        ({"label_keys": ("hat",)}, "no feature 'hat'; there are age, image, label, size, town"),
        ({"image_key": "photo"}, "no feature 'photo'"),
        ({"label_keys": ("size",)}, r"'size' must be one integer or text to be a label, got float32"),
        ({"label_keys": ("image",)}, r"'image' must be one integer or text to be a label, got uint8"),
        ({"label_keys": ()}, "label_keys must name at least one feature"),
        ({"label_keys": "label"}, "label_keys must name at least one feature"),
        ({"split": "train"}, "split must be 'given', 'within' or 'disjoint', got 'train'"),
        ({"image_size": 0}, "image_size must be at least 1"),
    ],
)
def test_bad_arguments_are_refused(data_dir, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_tfds(**{"name": "tiny_people", "label_keys": ("label",), "data_dir": data_dir} | options)
    assert "\n" not in str(caught.value)
