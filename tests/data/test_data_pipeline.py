"""Reading batches: order, resuming, several processes, bad images and timeouts."""

import json
import multiprocessing
import threading
import time

import numpy as np
import pytest

from jaxmetric.data import (
    ImageError,
    InputError,
    InputTimeoutError,
    LabelColumn,
    LabeledImages,
    batch_indices,
    batches,
    make_plan,
    make_uniform_plan,
    read_batch,
)

CLASSES = np.repeat(np.arange(4), 5)
PLAN = make_plan(CLASSES, classes_per_batch=3, images_per_class=2, seed=5)


class Flaky:
    """Images whose values are their indices. Those in `bad` cannot be read; `read` lists all requests."""

    def __init__(self, bad=()):
        self.bad = set(bad)
        self.read = []

    def __len__(self):
        return len(CLASSES)

    def __getitem__(self, index):
        self.read.append(int(index))
        if index in self.bad:
            raise ImageError(f"{index}.png: broken")
        return np.full((2, 2, 3), index, np.uint8)


class Many:
    """A sequence that repeats the same images as often as there are bad ones."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images.bad)

    def __getitem__(self, index):
        return self.images[index]


def source(images):
    column = LabelColumn("who", tuple("abcd"))
    names = tuple(f"{i}.png" for i in range(20))
    return LabeledImages(images, CLASSES[:, None].astype(np.int32), (column,), np.zeros(20, np.int8), names)


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key], strict=True)


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


def test_threads_change_neither_batches_nor_their_order():
    alone, many = (
        list(
            batches(source(Flaky(bad=[7, 12])), PLAN, 0, 15, on_bad=lambda _: None, threads=threads, prefetch=prefetch)
        )
        for threads, prefetch in ((1, 1), (5, 20))
    )
    assert_same(alone, many)


def test_a_run_resumes_at_any_step():
    whole = [batch["index"].tolist() for batch in batches(source(Flaky()), PLAN, 0, 12)]
    parts = [batch["index"].tolist() for start in (0, 5) for batch in batches(source(Flaky()), PLAN, start, start + 7)]
    assert parts[:5] + parts[7:] == whole


def test_the_saved_state_gives_the_remaining_batches_for_any_readers():
    def read(start, **options):
        return batches(source(Flaky(bad=[7])), PLAN, start, 12, on_bad=lambda _: None, **options)

    first = read(0, threads=3)
    begun = [next(first) for _ in range(8)]
    state = json.loads(json.dumps(first.state()))
    assert state["next_step"] == 8
    assert state["unreadable"] == ["7.png: broken"]
    rest = list(read(state, threads=1))
    assert_same(begun + rest, read(0))
    shares = [list(read(state, process_index=p, process_count=2)) for p in range(2)]
    assert_same([{key: np.concatenate([a[key], b[key]]) for key in a} for a, b in zip(*shares, strict=True)], rest)


def test_a_resumed_run_remembers_the_images_it_could_not_read():
    def read(start, stop, bad):
        stream = batches(source(Flaky(bad=bad)), PLAN, start, stop, on_bad=lambda _: None)
        for _ in stream:
            pass
        return stream.state()

    assert read(read(0, 10, [12]), 20, [7])["unreadable"] == ["12.png: broken", "7.png: broken"]


@pytest.mark.parametrize(
    "other",
    [
        make_plan(CLASSES, classes_per_batch=3, images_per_class=2, seed=6),
        make_plan(CLASSES, classes_per_batch=2, images_per_class=3, seed=5),
        make_plan(CLASSES[::-1], classes_per_batch=3, images_per_class=2, seed=5),
        make_plan(np.repeat(np.arange(4), [4, 6, 5, 5]), classes_per_batch=3, images_per_class=2, seed=5),
    ],
    ids=["seed", "size", "images", "classes"],
)
def test_the_state_of_another_plan_is_refused(other):
    state = batches(source(Flaky()), other, 3, 9).state()
    with pytest.raises(ValueError, match=r"belongs to another plan .*: images, batch size or seed have changed"):
        batches(source(Flaky()), PLAN, state, 9)


def test_an_invalid_state_is_refused():
    with pytest.raises(ValueError, match=r"has next_step, unreadable and plan, got \['step'\]"):
        batches(source(Flaky()), PLAN, {"step": 3}, 9)


@pytest.mark.parametrize("count", [1, 2, 3, 6])
@pytest.mark.parametrize("plan", [PLAN, make_uniform_plan(20, batch_size=6, seed=1)], ids=["classes", "uniform"])
def test_the_rows_of_all_processes_equal_the_batch_of_one(plan, count):
    for step in range(12):
        whole, *shares = (
            read_batch(source(Flaky([1, 7, 8, 12, 19])), plan, step, on_bad=lambda _: None, **options)
            for options in ({}, *({"process_index": p, "process_count": count} for p in range(count)))
        )
        assert {len(share["index"]) for share in shares} == {6 // count}
        assert_same([{key: np.concatenate([share[key] for share in shares]) for key in whole}], [whole])


def test_a_process_reads_only_its_own_images():
    images = Flaky()
    list(batches(source(images), PLAN, 0, 5, process_index=1, process_count=3))
    assert sorted(images.read) == sorted(int(i) for step in range(5) for i in batch_indices(PLAN, step)[2:4])


def test_a_batch_that_cannot_be_shared_evenly_is_refused():
    with pytest.raises(ValueError, match=r"6 images \(3 classes x 2\) cannot be shared evenly by 4 processes"):
        batches(source(Flaky()), PLAN, 0, 5, process_count=4)
    with pytest.raises(ValueError, match=r"process_index must lie in \[0, process_count\), got 2 of 2"):
        batches(source(Flaky()), PLAN, 0, 5, process_index=2, process_count=2)


def test_no_steps_give_no_batches():
    assert list(batches(source(Flaky()), PLAN, 4, 4)) == []


def test_a_bad_image_ends_the_run_with_its_name():
    with pytest.raises(ImageError, match=r"^7\.png: broken"):
        list(batches(source(Flaky(bad=[7])), PLAN, 0, 10))


def test_on_bad_replaces_an_image_by_another_of_its_class():
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


def test_two_bad_images_of_a_class_get_different_substitutes():
    first = make_plan(CLASSES[:5], classes_per_batch=1, images_per_class=3)
    shown = batch_indices(first, 0)
    batch = read_batch(source(Flaky(bad=shown[:2])), first, 0, on_bad=lambda _: None)
    assert sorted(batch["index"].tolist()) == sorted({0, 1, 2, 3, 4} - set(shown[:2].tolist()))


def test_on_bad_is_called_in_the_consumers_thread_before_its_batch():
    calls = []
    stream = batches(
        source(Flaky(bad=[7])), PLAN, 0, 20, on_bad=lambda e: calls.append((str(e), threading.current_thread()))
    )
    for step, _ in enumerate(stream):
        planned = sum((batch_indices(PLAN, before) == 7).sum() for before in range(step + 1))
        assert calls == [("7.png: broken", threading.current_thread())] * planned
    assert calls


def test_a_class_without_any_readable_image_ends_the_run():
    with pytest.raises(ImageError, match="no other image of its class can be read"):
        list(batches(source(Flaky(bad=range(5))), PLAN, 0, 10, on_bad=lambda _: None))


def test_a_lost_mount_ends_the_run_before_all_images_are_tried():
    images = Flaky(bad=range(2000))
    many = LabeledImages(
        Many(images), np.zeros((2000, 1), np.int32), (LabelColumn("who", ("a",)),), np.zeros(2000, np.int8), range(2000)
    )
    with pytest.raises(ImageError, match=r"broken \(and none of 100 other images of its class can be read"):
        read_batch(many, make_uniform_plan(2000, batch_size=2), 0, on_bad=lambda _: None)
    assert len(images.read) == 101


def test_any_other_failure_is_one_line_that_names_the_step():
    class Broken(Flaky):
        def __getitem__(self, index):
            raise RuntimeError("no such\nrecord")

    with pytest.raises(InputError) as caught:
        next(batches(source(Broken()), PLAN, 3, 9))
    assert str(caught.value) == "step 3 cannot be read: RuntimeError: no such record"
    assert "in __getitem__" in caught.value.__notes__[0]


def test_after_an_error_the_iteration_is_over():
    stream = batches(source(Flaky(bad=range(20))), PLAN, 0, 10)
    with pytest.raises(ImageError):
        next(stream)
    assert list(stream) == []


def test_a_hung_read_ends_with_one_line():
    arrives = threading.Event()

    class Hung(Flaky):
        def __getitem__(self, index):
            if index == stuck:
                arrives.wait()
            return super().__getitem__(index)

    stuck = int(batch_indices(PLAN, 2)[4])
    stream = batches(source(Hung()), PLAN, 0, 12, process_index=1, process_count=2, timeout=0.3)
    named = ", ".join(f"{i}.png" for i in batch_indices(PLAN, 2)[3:])
    before = next(step for step in range(12) if stuck in batch_indices(PLAN, step)[3:])
    assert before == 2
    began = time.monotonic()
    with pytest.raises(InputTimeoutError, match=f"^no batch came in 0.3 s: step 2 waits for one of {named}$"):
        list(stream)
    assert time.monotonic() - began < 3
    assert list(stream) == []
    arrives.set()


def test_a_long_list_of_images_in_a_timeout_is_shortened():
    class Hung(Flaky):
        def __getitem__(self, index):
            return arrives.wait()

    arrives = threading.Event()
    with pytest.raises(InputTimeoutError, match=r"one of \d+\.png, \d+\.png, \d+\.png and 3 more$"):
        next(batches(source(Hung()), PLAN, 0, 1, timeout=0.1))
    arrives.set()


def test_input_speed_is_the_speed_of_the_readers():
    class Slow(Flaky):
        def __getitem__(self, index):
            time.sleep(0.01)
            return super().__getitem__(index)

    stream = batches(source(Slow()), PLAN, 0, 8, threads=2)
    assert stream.speed() == (0.0, 0.0)
    began = time.monotonic()
    for _ in range(7):
        next(stream)
    waited, images_per_second = stream.speed()
    assert 0.2 <= waited <= time.monotonic() - began
    assert 20 < images_per_second <= 200  # 2 readers, each at most 100 images a second
    assert stream.speed() == (0.0, 0.0)
    time.sleep(0.5)
    next(stream)
    assert stream.speed().waited_seconds < 0.3  # read ahead meanwhile


def test_images_in_memory_are_read_without_workers():
    stream = batches(source(array()), PLAN, 0, 5, workers=2)
    next(stream)
    assert multiprocessing.active_children() == []
    stream.close()


def test_read_batch_equals_the_batch_of_the_iterator():
    plan = make_uniform_plan(20, batch_size=4, seed=2)
    (batch,) = batches(source(array()), plan, 6, 7)
    alone = read_batch(source(array()), plan, 6)
    assert all((batch[key] == alone[key]).all() for key in alone)


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (4, 2)])
def test_start_must_not_exceed_stop(start, stop):
    with pytest.raises(ValueError, match=f"got {start} and {stop}"):
        batches(source(Flaky()), PLAN, start, stop)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": -1}, "workers must be at least 0, got -1"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"prefetch": 0}, "prefetch must be at least 1, got 0"),
        ({"timeout": 0}, "timeout must be a number of seconds above 0, or None, got 0"),
        ({"plan": make_uniform_plan(21, batch_size=3)}, "the plan draws image 20, but the source has only 20"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        batches(**{"source": source(Flaky()), "plan": PLAN, "start": 0, "stop": 5} | options)
