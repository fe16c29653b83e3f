"""Reading batches: in the plan's order, from any step, around bad pictures."""

import numpy as np
import pytest

from jaxmetric.data import (
    LabelColumn,
    LabelledImages,
    PictureError,
    batch_indices,
    batches,
    make_plan,
    make_uniform_plan,
    read_batch,
)

CLASSES = np.repeat(np.arange(4), 5)
PLAN = make_plan(CLASSES, classes_per_batch=3, pictures_per_class=2, seed=5)


class Flaky:
    """Picture i has the value i; those in `bad` cannot be read."""

    def __init__(self, bad=()):
        self.bad = set(bad)

    def __len__(self):
        return len(CLASSES)

    def __getitem__(self, index):
        if index in self.bad:
            raise PictureError(f"{index}.png: broken")
        return np.full((2, 2, 3), index, np.uint8)


def source(images):
    column = LabelColumn("who", tuple("abcd"))
    names = tuple(f"{i}.png" for i in range(20))
    return LabelledImages(images, CLASSES[:, None].astype(np.int32), (column,), np.zeros(20, np.int8), names)


def array():
    return np.broadcast_to(np.arange(20, dtype=np.uint8)[:, None, None, None], (20, 2, 2, 3))


@pytest.mark.parametrize("images", [array(), Flaky()], ids=["memory", "lazy"])
def test_batches_follow_the_plan(images):
    read = list(batches(source(images), PLAN, 3, 9))
    assert len(read) == 6
    for step, batch in zip(range(3, 9), read, strict=True):
        expected = batch_indices(PLAN, step)
        np.testing.assert_array_equal(batch["index"], expected)
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], expected)
        np.testing.assert_array_equal(batch["label"], CLASSES[expected][:, None])
        assert {key: value.dtype.name for key, value in batch.items()} == {
            "image": "uint8",
            "label": "int32",
            "index": "int32",
        }


def test_a_run_resumes_at_any_step():
    whole = [batch["index"].tolist() for batch in batches(source(Flaky()), PLAN, 0, 12)]
    parts = [batch["index"].tolist() for start in (0, 5) for batch in batches(source(Flaky()), PLAN, start, start + 7)]
    assert parts[:5] + parts[7:] == whole


def test_no_steps_no_batches():
    assert list(batches(source(Flaky()), PLAN, 4, 4)) == []


def test_a_bad_picture_ends_the_run_with_its_name():
    with pytest.raises(PictureError, match=r"^7\.png: broken"):
        list(batches(source(Flaky(bad=[7])), PLAN, 0, 10))


def test_on_bad_replaces_by_another_picture_of_the_class_and_counts():
    met = []
    read = list(batches(source(Flaky(bad=[7, 12])), PLAN, 0, 20, on_bad=met.append))
    planned = np.concatenate([batch_indices(PLAN, step) for step in range(20)])
    indices = np.concatenate([batch["index"] for batch in read])
    assert len(met) == np.isin(planned, [7, 12]).sum() > 0
    assert not np.isin(indices, [7, 12]).any()
    np.testing.assert_array_equal(CLASSES[indices], CLASSES[planned])
    np.testing.assert_array_equal(indices[~np.isin(planned, [7, 12])], planned[~np.isin(planned, [7, 12])])
    for batch in read:
        assert len(set(batch["index"].tolist())) == len(batch["index"])
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["index"])


def test_a_class_without_any_readable_picture_ends_the_run():
    with pytest.raises(PictureError, match="no other picture of its class can be read"):
        list(batches(source(Flaky(bad=range(5))), PLAN, 0, 10, on_bad=lambda _: None))


def test_one_batch_alone_is_that_of_the_iterator():
    plan = make_uniform_plan(20, batch_size=4, seed=2)
    (batch,) = batches(source(array()), plan, 6, 7)
    alone = read_batch(source(array()), plan, 6)
    assert all((batch[key] == alone[key]).all() for key in alone)


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (4, 2)])
def test_steps_must_run_forwards(start, stop):
    with pytest.raises(ValueError, match=f"got {start} and {stop}"):
        batches(source(Flaky()), PLAN, start, stop)
