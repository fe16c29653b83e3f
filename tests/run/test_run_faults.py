"""Runs that are killed, preempted, or whose disk or images fail: they continue to the same bits, or say why not."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import chex
import numpy as np
import pytest
from finished_runs import final_state

from jaxmetric.run import train
from jaxmetric.training import open_checkpoints, read_metrics

ROOT = Path(__file__).parents[2]
SMALL = ["debug", "--steps", "12", "--log-every", "4", "--checkpoint-every", "4", "--evaluate-every", "6"]


def start(words, workdir, **options):
    command = [sys.executable, "-u", "-m", "experiments.train", *words, "--workdir", str(workdir)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, **pipes, **options)


def losses(workdir):
    lines = [line for line in read_metrics(workdir) if "loss" in line]
    return {line["step"]: line["loss"] for line in lines}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert train.main([*SMALL, "--workdir", str(workdir)]) == 0
    return workdir


def shorten(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_truncated_newest_checkpoint_is_set_aside_and_the_run_ends_in_the_same_bits(undisturbed, tmp_path, capsys):
    shutil.copytree(undisturbed, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "12"
    shorten(max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size))
    assert train.main([*SMALL, "--workdir", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr()
    assert re.search(
        r"warning: the checkpoint of step 12 .* could not be read: .* has [\d,]+ of [\d,]+ bytes", printed.err
    )
    assert "going on after step 8" in printed.out
    assert (tmp_path / "run" / "unreadable" / "12").exists()
    chex.assert_trees_all_equal(final_state(tmp_path / "run"), final_state(undisturbed))


def test_without_any_readable_checkpoint_a_run_does_not_restart(undisturbed, tmp_path, capsys):
    shutil.copytree(undisturbed, tmp_path / "run")
    for checkpoint in (tmp_path / "run" / "checkpoints").glob("*[0-9]"):
        shorten(next(path for path in (checkpoint / "state").rglob("manifest.ocdbt")))
    assert train.main([*SMALL, "--workdir", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert error[0].startswith("error: the checkpoint of step 12")
    assert (tmp_path / "run" / "checkpoints" / "12").exists()


@pytest.mark.slow
def test_the_best_model_is_kept(undisturbed):
    with open_checkpoints(undisturbed / "checkpoints") as checkpoints:
        scores = {step: checkpoints.metrics(step) for step in checkpoints.all_steps()}
        assert checkpoints.best_step() == max(
            (step for step in scores if scores[step]), key=lambda step: scores[step]["score"]
        )
    assert any(scores.values())
    validated = {line["step"]: line for line in read_metrics(undisturbed) if "validation/role/recall@1" in line}
    for step, line in validated.items():
        if step in scores:
            recalls = [line[f"validation/{name}/recall@1"] for name in ("role", "gender", "skin")]
            assert scores[step]["score"] == pytest.approx(np.mean(recalls))


def test_sigterm_saves_and_exits_with_0_and_the_run_resumes_bit_for_bit(undisturbed, tmp_path):
    process = start(SMALL, tmp_path / "run")
    for line in process.stdout:
        if line.startswith("step 1/"):
            break
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    printed, errors = process.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert (process.returncode, errors) == (0, "")
    stopped = re.search(r"stopped by SIGTERM after step (\d+); the same command goes on from there", printed)
    assert (tmp_path / "run" / "checkpoints" / stopped[1]).exists()
    assert train.main([*SMALL, "--workdir", str(tmp_path / "run")]) == 0
    chex.assert_trees_all_equal(final_state(tmp_path / "run"), final_state(undisturbed))


def test_a_step_longer_than_the_grace_period_is_ended():
    code = (
        "import os, signal, time; from jaxmetric.training import stop_on_signals\n"
        "with stop_on_signals(grace=0.2):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    end = time.monotonic() + 60\n"
        "    while time.monotonic() < end: sum(range(10**6))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0
    assert done.stderr == "stopped by SIGTERM: the run did not stop within 0.2 s; checkpoints are kept\n"


def test_an_image_lost_during_the_run_is_a_one_line_error(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    rows = ["image,person,split"]
    for person in range(4):
        for number in range(4):
            name = f"{person}_{number}.png"
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / name)
            rows.append(f"{name},p{person},{0 if number < 2 else 2}")
    (tmp_path / "people.csv").write_text("\n".join(rows))
    words = ["quadruplet_csv", "--csv", str(tmp_path / "people.csv"), "--encoder", "tiny", "--width", "4"]
    words += ["--image-size", "16", "--stored-size", "16", "--classes-per-batch", "4", "--images-per-class", "2"]
    process = start([*words, "--steps", "100000", "--log-every", "1", "--memory", "0"], tmp_path / "run")
    for line in process.stdout:
        if line.startswith("step 2/"):
            (tmp_path / "0_0.png").unlink()
            break
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 1
    assert errors.splitlines()[-1] == f"error: 0_0.png: no such file as {tmp_path / '0_0.png'}"
    assert all(line.startswith("warning: ") for line in errors.splitlines()[:-1])


@pytest.mark.slow
def test_killed_twenty_times_at_random_a_run_ends_in_the_same_bits(tmp_path):
    words = ["debug", "--steps", "240", "--log-every", "40", "--checkpoint-every", "3", "--evaluate-every", "0"]
    with start(words, tmp_path / "undisturbed") as process:
        assert process.wait() == 0
    chance, kills, moments = random.Random(0), 0, []
    while kills < 20:
        process = start(words, tmp_path / "killed")
        begun = False
        if chance.random() < 0.8:  # else it may hit the loading, the first compilation, the restoring
            begun = any(line.startswith("step ") for line in process.stdout)
        time.sleep(chance.uniform(0, 1.0 if begun else 4.0))
        finished = process.poll() is not None
        process.kill()
        process.communicate()
        kept = sorted(int(path.name) for path in (tmp_path / "killed" / "checkpoints").glob("*") if path.name.isdigit())
        moments.append(kept[-1] if kept else None)
        kills += not finished
        if finished:
            shutil.rmtree(tmp_path / "killed")  # it was faster than the killer: once more from the start
    with start(words, tmp_path / "killed") as process:
        assert process.wait() == 0
    print("newest checkpoint at each kill:", moments)
    chex.assert_trees_all_equal(final_state(tmp_path / "killed"), final_state(tmp_path / "undisturbed"))
    again = losses(tmp_path / "killed")
    assert {step: again[step] for step in (120, 240)} == {
        step: losses(tmp_path / "undisturbed")[step] for step in (120, 240)
    }


@contextmanager
def disk(folder, options):
    """A file system of its own."""
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=False).returncode:
        pytest.skip("no file system can be mounted here, which needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=False)


def fill(path):
    with suppress(OSError), path.open("wb") as file:
        while True:
            file.write(bytes(2**16))
            file.flush()


@pytest.mark.slow
def test_a_full_disk_is_a_one_line_error_and_the_last_checkpoint_stays(tmp_path):
    words = ["debug", "--steps", "4000", "--log-every", "1", "--checkpoint-every", "5", "--evaluate-every", "0"]
    with disk(tmp_path / "disk", "size=12m") as folder:
        process = start(words, folder / "run")
        for line in process.stdout:
            if line.startswith("step 20/"):
                fill(folder / "filler")
                break
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 1
        assert re.fullmatch(
            r"error: (no room for a checkpoint|.*: No space left|a checkpoint could not).*\n", errors
        ), errors
        (folder / "filler").unlink()
        again = start(words, folder / "run")
        for line in again.stdout:
            if line.startswith("going on after step "):
                assert int(line.split()[-1]) >= 5
                break
        else:
            pytest.fail("the run began anew")
        again.kill()
        again.communicate()


@pytest.mark.slow
def test_a_read_only_disk_is_a_one_line_error_before_work_starts(tmp_path):
    with disk(tmp_path / "disk", "ro") as folder:
        process = start(SMALL, folder / "run")
        printed, errors = process.communicate(timeout=100)
    assert process.returncode == 1
    assert re.fullmatch(r"error: .*run: Read-only file system\n", errors), errors
    assert "step" not in printed.replace("steps", "")
