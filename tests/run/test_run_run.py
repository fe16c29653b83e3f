"""Runs from the command line: to the end, stopped and continued, and with input that cannot be used."""

import dataclasses
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from finished_runs import final_state
from PIL import Image

from jaxmetric.data import LEARNING
from jaxmetric.run import evaluate, progress, train, workdir
from jaxmetric.run.config import ClassConfig
from jaxmetric.run.errors import ConfigError
from jaxmetric.run.experiment import drive_step, load_experiment, make_state
from jaxmetric.run.presets import PRESETS
from jaxmetric.run.source import learned_classes
from jaxmetric.run.workdir import claim_workdir, exclusive_workdir

ROOT = Path(__file__).parents[2]
ANCHORED = "5*anchored_quadruplet(num_anchors=4) + soft_triple(centers_per_class=2)"
SMALL = ["debug", "--steps", "12", "--log-every", "4", "--checkpoint-every", "6", "--evaluate-every", "6"]


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    with redirect_stdout(StringIO()) as printed:
        assert train.main([*SMALL, "--workdir", str(workdir)]) == 0
    return workdir, printed.getvalue()


@pytest.fixture
def finished(finished_run):
    return finished_run[0]


def _final_params(workdir):
    state = final_state(workdir)
    assert int(state.step) == 12
    return state.params


def _metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def _write_images(folder, identities=6, each=4):
    rng = np.random.default_rng(0)
    rows = []
    for identity in range(identities):
        for number in range(each):
            name = f"{identity}_{number}.png"
            Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(folder / name)
            rows.append(f"{name},person {identity},{['left', 'right'][identity % 2]},{0 if number < 2 else number - 1}")
    return rows


def test_a_run_leaves_its_files(finished):
    assert {path.name for path in finished.iterdir()} == {
        ".lock", "checkpoints", "config.json", "data.json", "evaluation.json", "metrics.jsonl", "report.html",
        "tensorboard",
    }  # fmt: skip
    losses = [line for line in _metrics(finished) if "loss" in line]
    assert [line["step"] for line in losses] == [1, 4, 6, 8, 12]
    assert all(np.isfinite(line["loss"]) for line in losses)
    assert losses[0]["loss"] == pytest.approx(
        5 * losses[0]["loss/quadruplet"] + losses[0]["loss/soft_triple"], rel=1e-5
    )
    validated = [line["step"] for line in _metrics(finished) if "validation/role/recall@1" in line]
    assert validated == [6, 12]
    # A linear warmup over 11 of the 12 steps to the preset's 3e-3; each line has the mean since the one before.
    rates = [line["learning_rate"] for line in losses]
    assert rates == pytest.approx([3e-3 * warmed / 11 for warmed in (0, 2, 4.5, 6.5, 9.5)], rel=1e-5)
    evaluation = json.loads((finished / "evaluation.json").read_text())
    assert set(evaluation["columns"]) == set(evaluation["untrained"]["columns"]) == {"role", "gender", "skin"}
    assert (evaluation["queries"], evaluation["gallery"]) == (288, 2016)


def test_validation_metrics_are_printed_on_the_console(finished_run):
    finished, printed = finished_run
    (last,) = (line for line in _metrics(finished) if line["step"] == 12 and "validation/coherence" in line)
    recalls = ", ".join(
        f"{name}/recall@1 {last[f'validation/{name}/recall@1']:.3f}" for name in ("role", "gender", "skin")
    )
    assert f"validation after step 12: {recalls}, coherence {last['validation/coherence']:.3f}\n" in printed
    assert printed.count("validation after step") == 2


def test_undefined_validation_metrics_are_reported():
    assert progress._validated({"validation/hat/recall@1": None, "validation/coherence": 0.5}) == (
        "hat/recall@1 undefined, coherence 0.500"
    )


def open_terminal(monkeypatch):
    """What a terminal of 120 columns shows."""

    class Terminal(StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("LINES", "24")
    return terminal


def test_messages_beside_a_bar_are_on_their_own_lines(monkeypatch):
    screen = open_terminal(monkeypatch)
    with progress._bar_or_lines(0, 10) as show:
        show(2, {"loss": 1.0, "images_per_second": 10.0, "input_images_per_second": 0.0})
        progress._say_beside_bar("validated")
    assert re.search(r"\r *\rvalidated\n", screen.getvalue())


def test_a_bar_says_that_it_compiles_and_counts_time_from_the_first_step(monkeypatch):
    screen = open_terminal(monkeypatch)
    now = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    numbers = {"loss": 1.0, "images_per_second": 10.0, "input_images_per_second": 0.0}
    with progress._bar_or_lines(5, 105) as show:
        assert "compiling" in screen.getvalue()
        now[0] += 60.0
        show(6, numbers)
        assert "compiling" not in screen.getvalue().rpartition("\r")[2]
        now[0] += 10.0
        show(16, numbers)
        assert "1.00step/s" in screen.getvalue().rpartition("\r")[2]
        assert "01:29" in screen.getvalue().rpartition("\r")[2]  # 89 steps are left
    assert "1.00step/s" in screen.getvalue().rpartition("\r")[2]  # of the whole


def test_the_bar_of_a_finished_run_does_not_mention_compiling(monkeypatch):
    screen = open_terminal(monkeypatch)
    with progress._bar_or_lines(5, 5):
        pass
    assert "compiling" not in screen.getvalue()


def test_a_second_run_in_a_directory_is_a_one_line_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(workdir, "_GRACE", 0.5)
    with exclusive_workdir(tmp_path):
        assert train.main([*SMALL, "--workdir", str(tmp_path)]) == 1
    printed, errors = capsys.readouterr()
    assert printed == f"a run is under way in {tmp_path}; waiting up to 0.5 s for its end\n"
    assert errors.startswith(f"error: a run is under way in {tmp_path}; ")
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_evaluating_during_a_run_does_not_change_its_checkpoints(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    (checkpoints / "12" / "state" / "manifest.ocdbt").unlink()  # as of one that is being deleted
    before = sorted(checkpoints.rglob("*"))
    with exclusive_workdir(tmp_path / "run"):
        assert evaluate.main(["--workdir", str(tmp_path / "run")]) == 0
    assert "the latest checkpoint is that of step 6" in capsys.readouterr().out
    assert sorted(checkpoints.rglob("*")) == before
    assert not (tmp_path / "run" / "unreadable").exists()


@pytest.mark.parametrize("name", ["config.json", "data.json"])
def test_checkpoints_without_the_files_that_identify_the_run_are_not_resumed(name, finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    assert train.main([*SMALL, "--workdir", str(tmp_path / "run")]) == 1
    assert f"holds checkpoints, but no {name}; put it back" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_whose_terminal_is_closed_saves(tmp_path):
    master, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 120))
    words = [*SMALL, "--steps", "100000", "--checkpoint-every", "100000", "--evaluate-every", "0"]
    # These tests may run under nohup, whose children ignore the signal.
    hear = (
        "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_DFL); os.execv(sys.executable, sys.argv[1:])"
    )
    train = [sys.executable, "-m", "experiments.train", *words, "--workdir", str(tmp_path / "run")]
    ends = dict.fromkeys(("stdin", "stdout", "stderr"), terminal)
    with subprocess.Popen([sys.executable, "-c", hear, *train], cwd=ROOT, **ends) as process:
        os.close(terminal)
        shown = b""
        while b"images/s" not in shown:
            shown += os.read(master, 1000)
        os.close(master)
        process.send_signal(signal.SIGHUP)
        try:
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert any(path.name.isdigit() for path in (tmp_path / "run" / "checkpoints").iterdir())


def test_a_run_that_is_about_to_end_is_waited_for(tmp_path, capsys):
    held = exclusive_workdir(tmp_path)
    held.__enter__()
    threading.Timer(0.5, held.__exit__, (None, None, None)).start()
    with exclusive_workdir(tmp_path):
        assert "waiting up to 30 s" in capsys.readouterr().out


def test_a_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch):
    def refuse(file, kind):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.warns(UserWarning, match=r"\.lock: no lock \(No locks available\)"), exclusive_workdir(tmp_path):
        pass


def test_a_run_whose_output_nobody_reads_saves_and_stops(tmp_path):
    words = [*SMALL, "--steps", "100000", "--log-every", "1", "--checkpoint-every", "100000", "--evaluate-every", "0"]
    command = [sys.executable, "-m", "experiments.train", *words, "--workdir", str(tmp_path / "run")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        for line in process.stdout:
            if line.startswith("step 3/"):
                break
        process.stdout.close()
        errors = process.stderr.read()
    assert (process.returncode, errors) == (0, "")
    assert any(path.name.isdigit() for path in (tmp_path / "run" / "checkpoints").iterdir())


def test_evaluating_again_gives_the_same(finished, capsys):
    before = (finished / "evaluation.json").read_text()
    (finished / "evaluation.json").unlink()
    assert evaluate.main(["--workdir", str(finished)]) == 0
    assert (finished / "evaluation.json").read_text() == before
    assert "role Recall@1" in capsys.readouterr().out


@pytest.mark.slow  # as SIGTERM in test_run_faults.py
def test_a_run_stopped_by_ctrl_c_resumes_to_the_same_numbers(finished, tmp_path):
    command = [sys.executable, "-u", "-m", "experiments.train", *SMALL, "--workdir", str(tmp_path / "stopped")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            if line.startswith("step 1/"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stdout.read()
        code = process.wait()
    stopped = re.search(r"stopped by SIGINT after step (\d+)", rest)
    assert code == 130, rest
    assert 1 <= int(stopped[1]) < 12, rest
    assert train.main([*SMALL, "--workdir", str(tmp_path / "stopped")]) == 0
    chex.assert_trees_all_equal(_final_params(tmp_path / "stopped"), _final_params(finished))
    assert _metrics(tmp_path / "stopped")[-1] == _metrics(finished)[-1]


def test_a_step_begins_when_at_most_one_earlier_step_is_running(tmp_path, monkeypatch):
    begun, ended = [], []

    def late(x):
        time.sleep(0.05)
        return x

    def watched(experiment, driver):
        driven = drive_step(experiment, driver)

        def run(state, batch):
            ended.append(sum(loss.is_ready() for loss in begun))
            state, metrics = driven.run(state, batch)
            loss = metrics["loss"].addressable_data(0)
            begun.append(jax.jit(lambda x: jax.pure_callback(late, x, x))(loss))
            return state, {**metrics, "loss": begun[-1]}

        return dataclasses.replace(driven, run=run)

    monkeypatch.setattr(train, "drive_step", watched)
    words = ["debug", "--steps", "20", "--log-every", "100", "--evaluate-every", "0", "--workdir", str(tmp_path)]
    assert train.main(words) == 0
    assert all(number >= step - 1 for step, number in enumerate(ended)), ended
    assert any(number < step for step, number in enumerate(ended)), ended


@pytest.mark.slow
def test_profile_prints_the_path_of_the_trace_of_this_run(tmp_path, capsys):
    command = ["debug", "--steps", "9", "--evaluate-every", "0", "--profile", "--workdir", str(tmp_path)]
    assert train.main(command) == 0
    (trace,) = (tmp_path / "tensorboard" / "plugins" / "profile").iterdir()
    assert f"ui.perfetto.dev, into {trace}\n" in capsys.readouterr().out
    assert train.main(command) == 0
    assert "no step was traced" in capsys.readouterr().out


def test_the_same_command_on_a_finished_run_changes_nothing(finished):
    before = (finished / "metrics.jsonl").read_text()
    assert train.main([*SMALL, "--workdir", str(finished)]) == 0
    assert (finished / "metrics.jsonl").read_text() == before


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path, capsys):
    explode = ["--optimizer", "sgd", "--learning-rate", "1e30", "--loss-rate", "1e30", "--schedule", "constant"]
    words = [*SMALL, *explode, "--warmup", "7", "--evaluate-every", "0", "--checkpoint-every", "1"]
    assert train.main([*words, "--workdir", str(tmp_path)]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    what = r"the loss was (?:nan|inf) at|the gradient was not finite at|the state was not finite after"
    step = int(re.fullmatch(rf"error: (?:{what}) step (\d+); the last good .*", error)[1])
    kept = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit())
    assert kept[-1] == step - 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(final_state(tmp_path)))


def test_a_state_that_is_not_finite_is_reported_before_evaluation(tmp_path, capsys):
    explode = ["--optimizer", "sgd", "--learning-rate", "1e38", "--loss-rate", "1e5", "--schedule", "constant"]
    words = [*SMALL, *explode, "--warmup", "0", "--evaluate-every", "1", "--workdir", str(tmp_path)]
    assert train.main(words) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: the state was not finite after step 1; ")


def test_a_csv_with_missing_labels_trains_and_bad_rows_are_skipped(tmp_path, capsys):
    rows = _write_images(tmp_path)
    rows[1] = rows[1].replace("left", "")
    (tmp_path / "torn.png").write_bytes((tmp_path / "0_0.png").read_bytes()[:200])
    (tmp_path / "people.csv").write_text("\n".join(["image,person,side,split", *rows, "torn.png,person 1,right,0"]))
    words = ["quadruplet_csv", "--csv", str(tmp_path / "people.csv"), "--steps", "2", "--encoder", "tiny"]
    words += ["--width", "4", "--image-size", "16", "--stored-size", "16"]
    words += ["--classes-per-batch", "4", "--images-per-class", "2"]
    assert train.main([*words, "--workdir", str(tmp_path / "run")]) == 1
    assert re.search(r"error: .*people.csv:26: .*torn.png", capsys.readouterr().err)
    assert not (tmp_path / "run").exists()
    assert train.main([*words, "--skip-bad", "--workdir", str(tmp_path / "run")]) == 0
    assert "left out 1 bad row" in capsys.readouterr().err
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert (evaluation["queries"], evaluation["gallery"]) == (6, 12)

    (tmp_path / "0_0.png").unlink()
    assert train.main([*words, "--skip-bad", "--workdir", str(tmp_path / "run")]) == 1
    assert re.search(
        r"holds a run on other data: .*24 images then, 23 now\); .*put them back\n", capsys.readouterr().err
    )


def test_a_lack_of_held_out_images_is_found_before_training(tmp_path, capsys):
    rows = [f"{row.rsplit(',', 1)[0]},0" for row in _write_images(tmp_path)]
    (tmp_path / "people.csv").write_text("\n".join(["image,person,side,split", *rows]))
    words = ["quadruplet_csv", "--csv", str(tmp_path / "people.csv"), "--classes-per-batch", "4"]
    assert train.main([*words, "--workdir", str(tmp_path / "run")]) == 1
    assert "fewer than two images are held out" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda source: {"names": [f"x{name}" for name in source.names]}, "image names changed"),
        (lambda source: {"split": np.roll(source.split, 1)}, "split changed"),
        (lambda source: {"labels": np.roll(source.labels, 1, axis=0)}, "label values changed"),
    ],
)
def test_resuming_on_other_data_reports_the_changes_and_a_cure(change, told, older, tmp_path):
    experiment = load_experiment(PRESETS["debug"])
    claim_workdir(experiment.config, experiment.source, tmp_path)
    claim_workdir(experiment.config, experiment.source, tmp_path)
    if older:
        facts = json.loads((tmp_path / "data.json").read_text())
        (tmp_path / "data.json").write_text(
            json.dumps({"pictures": facts["images"], "labels": facts["labels"], "digest": facts["digest"]})
        )
        claim_workdir(experiment.config, experiment.source, tmp_path)
        told = "image names, label values or split changed"
    source = dataclasses.replace(experiment.source, **change(experiment.source))
    with pytest.raises(ConfigError) as refused:
        claim_workdir(experiment.config, source, tmp_path)
    assert f"on other data: {told} since it began" in str(refused.value)
    assert str(refused.value).endswith(
        "put the data back as they were to go on with it, or train anew in another --workdir"
    )


@pytest.mark.parametrize("sampled_classes", [0, 40])
def test_held_out_identities_are_no_classes_of_the_softmax(sampled_classes):
    data = dataclasses.replace(PRESETS["debug"].data, split="disjoint")
    classes = ClassConfig(sampled_classes=sampled_classes)
    experiment = load_experiment(dataclasses.replace(PRESETS["debug"], data=data, classes=classes))
    centers = jax.eval_shape(lambda: make_state(experiment)).params["loss"]["soft_triple.centers"]
    assert centers.shape[0] == 48
    # An embedding that points at its own class's centers is right, whatever code its identity has among all 72.
    learned = np.flatnonzero(experiment.source.split == LEARNING)[::36][:8]
    identities = learned_classes(experiment.source)[0]
    labels = experiment.source.labels[learned]
    vectors = np.eye(48, 32, dtype=np.float32) + np.eye(48, 32, -32, dtype=np.float32) * -1
    embeddings = vectors[np.searchsorted(identities, labels[:, 0])]
    params = {"soft_triple.centers": np.repeat(vectors[:, None], 2, axis=1)}
    _, (right, _) = experiment.objective(jax.random.key(0), params, {}, embeddings, labels)
    _, (wrong, _) = experiment.objective(jax.random.key(0), params, {}, embeddings[::-1], labels)
    assert right["loss/soft_triple"] < 0.1 < 5 < wrong["loss/soft_triple"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["debug", "--classes-per-batch", "100"],
            "the learning images have 72 values of role; give --classes-per-batch a number from 1 to 72",
        ),
        (["debug", "--classes-per-batch", "3", "--images-per-class", "1"], "does not divide among 8 devices"),
        (["debug", "--loss", "quadruplet(label_weights=(1, 2))"], "label_weights has 2 entries, expected one for each"),
        (["debug", "--loss", "triplet(mining='hardest')"], "triplet: mining is 'hardest', expected one of all"),
        (["debug", "--loss", "triplet(margin='wide')"], "triplet: margin is 'wide'"),
        (["debug", "--loss", "__import__('os')"], "expected options by name"),
        (["debug", "--columns", "hat"], "columns must be some of"),
        (["debug", "--split", "given"], "split is given, but emoji_people has none of its own"),
        (["quadruplet_csv", "--csv", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_a_configuration_that_cannot_run_is_a_one_line_error_and_leaves_no_files(words, message, tmp_path, capsys):
    assert train.main([*words, "--workdir", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_more_centers_than_images_is_a_warning():
    config = dataclasses.replace(PRESETS["debug"], loss="soft_triple(centers_per_class=29)")
    with pytest.warns(UserWarning, match="centers_per_class is 29, but role"):
        load_experiment(config)


def test_a_file_system_that_refuses_to_write_ends_the_run_with_one_line(tmp_path):
    words = [*SMALL, "--workdir", str(tmp_path / "run")]
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300));"
        "from jaxmetric.run import train; sys.exit(train.main(sys.argv[1:]))"
    )
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": ""}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.strip() == "error: [Errno 27] File too large"


@pytest.mark.slow
def test_sharded_classes_on_other_numbers_of_devices_give_the_numbers_of_replicated_ones(
    finished, tmp_path, monkeypatch, capsys
):
    words = [*SMALL, "--shard-classes", "--driver", "shard_map", "--workdir", str(tmp_path / "run")]
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=16")  # 72 classes fill 16 devices of 5 each
    done = subprocess.run(
        [sys.executable, "-m", "experiments.train", *words],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flags},
        check=False,
    )
    assert done.returncode == 0
    for name in ("12", "12.files.json"):
        subprocess.run(["rm", "-r", str(tmp_path / "run" / "checkpoints" / name)], check=True)
    assert train.main(words) == 0
    assert "going on after step 6" in capsys.readouterr().out
    lines, expected = (
        {line["step"]: line for line in _metrics(path) if "loss" in line} for path in (tmp_path / "run", finished)
    )
    for step in (1, 4, 6, 12):  # means of steps 7 to 8 stand apart, as the run began anew at 7
        np.testing.assert_allclose(lines[step]["loss"], expected[step]["loss"], rtol=1e-4)
        np.testing.assert_allclose(lines[step]["gradient_norm"], expected[step]["gradient_norm"], rtol=1e-3)
    assert evaluate.main(["--workdir", str(tmp_path / "run"), "--checkpoint", "best"]) == 0
    assert (tmp_path / "run" / "report-best.html").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--sampled-classes", "72", "--shard-classes", "--driver", "shard_map", "--chunks", "2", "--freeze-batch-norm"],
        ["--loss", ANCHORED, "--dtype", "bfloat16", "--remat"],
    ],
    ids=["all sampled, sharded, in chunks", "anchors in bfloat16, remat"],
)
@pytest.mark.slow
def test_options_for_many_devices_and_little_memory_train(words, tmp_path):
    plain = ["debug", "--steps", "3", "--evaluate-every", "0", "--log-every", "1"]
    plain += ["--freeze-batch-norm"] if "--freeze-batch-norm" in words else []
    assert train.main([*plain, "--workdir", str(tmp_path / "plain")]) == 0
    options = [word for word in words if word != "--freeze-batch-norm"]
    assert train.main([*plain, *options, "--workdir", str(tmp_path / "run")]) == 0
    tolerance = 1e-4 if "--chunks" in words else 0.2  # drawing anchors is no more than unbiased
    for line, right in zip(_metrics(tmp_path / "run"), _metrics(tmp_path / "plain"), strict=True):
        np.testing.assert_allclose(line["loss"], right["loss"], rtol=tolerance)
