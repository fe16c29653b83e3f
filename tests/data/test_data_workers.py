"""Reading in worker processes: the same batches as threads, one-line errors, no hanging and no orphans."""

import dataclasses
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
from PIL import Image

from jaxmetric.data import ImageError, InputError, InputTimeoutError, batch_indices, batches, load_manifest, make_plan

CLASSES, EACH, STEPS = 4, 6, 10
LOST, TORN = "c1-3.png", "c2-0.png"


class Reporting:
    """Images whose first pixel encodes the process that decoded them, and whether it initialized devices."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        from jax._src import xla_bridge

        image = self.images[index].copy()
        image[0, 0, 0] = xla_bridge.backends_are_initialized()
        image[0, 0, 1:] = divmod(os.getpid() % 65536, 256)
        return image


class Obstructed:
    """Images, one of which is never read: its reader is killed or hangs."""

    def __init__(self, images, obstacle, at):
        self.images, self.obstacle, self.at = images, obstacle, at

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if index == self.at:
            os.kill(os.getpid(), signal.SIGKILL) if self.obstacle == "killed" else time.sleep(10_000)
        return self.images[index]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Lazy images, two of which became unreadable after the check."""
    folder = tmp_path_factory.mktemp("images")
    names = [f"c{label}-{i}.png" for label in range(CLASSES) for i in range(EACH)]
    random = np.random.default_rng(0)
    for name in names:
        Image.fromarray(random.integers(0, 256, (9, 9, 3)).astype(np.uint8)).save(folder / name)
    (folder / "list.csv").write_text("image,who\n" + "".join(f"{name},{name[:2]}\n" for name in names))
    loaded = load_manifest(folder / "list.csv", image_size=8, memory_budget=0)
    (folder / LOST).unlink()
    (folder / TORN).write_bytes((folder / TORN).read_bytes()[:60])
    return loaded


@pytest.fixture(scope="module")
def plan(source):
    return make_plan(source.labels[:, 0], classes_per_batch=2, images_per_class=2)


def read(source, plan, start, **options):
    """Returns batches, the calls of `on_bad` for each and their threads, and the state after the last."""
    told, rows = [], []
    stream = batches(source, plan, start, STEPS, on_bad=told.append, **options)
    for batch in stream:
        rows.append((batch, [str(error) for error in told], threading.current_thread()))
        told.clear()
    return rows, stream.state()


@pytest.fixture(scope="module")
def by_workers(source, plan):
    return read(dataclasses.replace(source, images=Reporting(source.images)), plan, 0, workers=2, threads=2)


def test_workers_read_the_same_batches_as_threads(source, plan, by_workers):
    expected, state = read(source, plan, 0, threads=3)
    assert by_workers[1] == state
    for (batch, told, thread), (other, also_told, _) in zip(by_workers[0], expected, strict=True):
        for key in ("index", "label"):
            np.testing.assert_array_equal(batch[key], other[key], strict=True)
        np.testing.assert_array_equal(batch["image"][:, 1:], other["image"][:, 1:], strict=True)
        assert told == also_told
        assert thread is threading.main_thread()


def test_unreadable_images_in_workers_are_reported_each_time(plan, source, by_workers):
    for step, (_, told, _) in enumerate(by_workers[0]):
        planned = [source.names[i] for i in batch_indices(plan, step) if source.names[i] in (LOST, TORN)]
        assert [message.split(":")[0] for message in told] == planned
    assert by_workers[1]["unreadable"][0].startswith(f"{LOST}: no such file as ")
    assert [message.split(":")[0] for message in by_workers[1]["unreadable"]] == [LOST, TORN]


def test_two_other_processes_read_without_devices(by_workers):
    corners = np.stack([batch["image"][:, 0, 0] for batch, *_ in by_workers[0]])
    assert (corners[..., 0] == 0).all()
    readers = {tuple(pixel[1:]) for pixel in corners.reshape(-1, 3).tolist()}
    assert len(readers) == 2
    assert divmod(os.getpid() % 65536, 256) not in readers


def test_batches_from_workers_are_plain_arrays(by_workers):
    assert {type(value) for batch, *_ in by_workers[0] for value in batch.values()} == {np.ndarray}


def test_no_worker_outlives_the_iteration(by_workers):
    deadline = time.monotonic() + 30
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert multiprocessing.active_children() == []


def test_an_error_in_a_worker_is_raised_unchanged(source, plan):
    step = next(step for step in range(STEPS) if LOST in [source.names[i] for i in batch_indices(plan, step)])
    with pytest.raises(ImageError, match=f"^{re.escape(LOST)}: no such file as /.*{re.escape(LOST)}$"):
        next(batches(source, plan, step, STEPS, workers=1))


def test_a_killed_worker_ends_with_one_line(source, plan):
    at = int(batch_indices(plan, 0)[1])
    images = Obstructed(source.images, "killed", at)
    stream = batches(dataclasses.replace(source, images=images), plan, 0, STEPS, workers=1)
    message = r"^a worker process ended with exit code -9 \(killed, as the kernel does when memory runs out\)$"
    with pytest.raises(InputError, match=message):
        next(stream)


def test_a_hung_worker_ends_with_one_line_and_is_killed(source, plan):
    at = next(int(i) for i in batch_indices(plan, 1) if i not in batch_indices(plan, 0))
    images = Obstructed(source.images, "hung", at)
    stream = batches(
        dataclasses.replace(source, images=images), plan, 0, 2, workers=1, threads=1, timeout=1, on_bad=lambda _: None
    )
    next(stream)
    (worker,) = multiprocessing.active_children()
    with pytest.raises(InputTimeoutError, match=r"^no batch came in 1 s: step 1 waits for one of c\d-\d.png, "):
        next(stream)
    assert not worker.is_alive()


def test_a_hung_thread_does_not_keep_the_program_from_ending():
    script = textwrap.dedent(
        """
        import time
        import numpy as np
        from jaxmetric.data import *

        plan = make_uniform_plan(8, batch_size=2)

        class Hung:
            def __len__(self):
                return 8
            def __getitem__(self, index):
                if index not in batch_indices(plan, 0):
                    time.sleep(10_000)
                return np.zeros((4, 4, 3), np.uint8)

        columns = (LabelColumn("who", ("a",)),)
        source = LabeledImages(Hung(), np.zeros((8, 1), int), columns, np.zeros(8, int), "abcdefgh")
        try:
            for batch in batches(source, plan, 0, 9, timeout=2):
                print(len(batch["image"]))
        except InputTimeoutError as error:
            print(error)
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.match(r"2\nno batch came in 2 s: step 1 waits for one of \w, \w\n$", done.stdout)


def test_lazy_images_can_be_pickled(source):
    copy = pickle.loads(pickle.dumps(source.images))
    np.testing.assert_array_equal(copy[0], source.images[0])
