"""Arrays on disk by the digests of images."""

import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmetric.data import ImageError
from jaxmetric.data.feature_store import FeatureStore, FeatureStoreError, StoredFeatures, image_digest

SHAPE = (2, 3)
OF = {"encoder": "tiny", "stage": "stem"}


def digest(number):
    return image_digest(np.full((1, 1, 3), number, np.uint8))


def array(number):
    return np.full(SHAPE, number, np.float32)


def add(store, numbers):
    store.add([digest(number) for number in numbers], np.stack([array(number) for number in numbers]))


@settings(max_examples=25)
@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5), max_size=4))
def test_a_store_opened_again_gives_every_array_that_was_added_once(tmp_path_factory, parts):
    folder = tmp_path_factory.mktemp("store")
    for part in parts:
        add(FeatureStore(folder, OF, SHAPE), part)
    store, added = FeatureStore(folder, OF, SHAPE), {number for part in parts for number in part}
    rows = store.rows([digest(number) for number in range(10)])
    assert [row is not None for row in rows] == [number in added for number in range(10)]
    for number in added:
        np.testing.assert_array_equal(store.read(rows[number]), array(number))
    assert sorted(row for row in rows if row is not None) == list(range(len(added)))


def test_digests_differ_with_pixels_and_with_shapes():
    images = [np.zeros((2, 3, 3), np.uint8), np.zeros((3, 2, 3), np.uint8), np.ones((2, 3, 3), np.uint8)]
    assert len({image_digest(image) for image in images}) == 3
    assert image_digest(images[0][:, ::-1]) == image_digest(images[0])  # not the layout in memory


def test_what_a_killed_process_wrote_without_its_digests_is_overwritten(tmp_path):
    add(FeatureStore(tmp_path, OF, SHAPE), [1])
    with (tmp_path / "arrays").open("ab") as file:
        file.write(array(7).tobytes()[:-3])
    with (tmp_path / "digests").open("ab") as file:
        file.write(digest(7)[:5])
    store = FeatureStore(tmp_path, OF, SHAPE)
    assert store.rows([digest(1), digest(7)]) == [0, None]
    add(store, [7, 8])
    np.testing.assert_array_equal(store.read(1), array(7))
    np.testing.assert_array_equal(store.read(2), array(8))


def test_arrays_that_are_gone_are_named(tmp_path):
    add(FeatureStore(tmp_path, OF, SHAPE), [1, 2])
    data = (tmp_path / "arrays").read_bytes()
    (tmp_path / "arrays").write_bytes(data[:-1])
    with pytest.raises(FeatureStoreError, match=r"is damaged: its arrays have 47 bytes, expected 48; delete it$"):
        FeatureStore(tmp_path, OF, SHAPE)


@pytest.mark.parametrize(("description", "shape"), [({**OF, "stage": "layer1"}, SHAPE), (OF, (3, 2))])
def test_a_folder_of_other_arrays_is_refused(tmp_path, description, shape):
    FeatureStore(tmp_path, OF, SHAPE)
    with pytest.raises(FeatureStoreError, match=r"holds other arrays, see features\.json; delete it, or name another"):
        FeatureStore(tmp_path, description, shape)


def _fill(folder, start):
    store = FeatureStore(Path(folder), OF, SHAPE)
    for number in range(start, start + 40):
        add(store, [number % 50])


def test_processes_may_add_to_a_store_at_the_same_time(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_fill, args=(str(tmp_path), start)) for start in (0, 20)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    store = FeatureStore(tmp_path, OF, SHAPE)
    rows = store.rows([digest(number) for number in range(50)])
    assert sorted(rows) == list(range(50))
    for number, row in enumerate(rows):
        np.testing.assert_array_equal(store.read(row), array(number))


def test_a_store_can_be_sent_to_a_process_that_reads_and_sees_what_is_added(tmp_path):
    store = FeatureStore(tmp_path, OF, SHAPE)
    add(store, range(100))
    assert store.rows([digest(5)]) == [5]
    np.testing.assert_array_equal(store.read(5), array(5))
    sent = pickle.dumps(StoredFeatures(store, [5]))
    assert len(sent) < 1000
    np.testing.assert_array_equal(pickle.loads(sent)[0], array(5))
    add(store, [200])
    np.testing.assert_array_equal(store.read(100), array(200))


def test_images_that_could_not_be_read_raise_their_error(tmp_path):
    store = FeatureStore(tmp_path, OF, SHAPE)
    add(store, [5])
    features = StoredFeatures(store, [None, 0, "b.png: truncated"])
    np.testing.assert_array_equal(features[1], array(5))
    for _ in range(3):
        with pytest.raises(ImageError, match=r"b\.png: truncated") as caught:
            features[2]
        assert len(caught.traceback) < 5  # a new error each time
    with pytest.raises(KeyError):
        features[0]
    assert len(features) == 3
