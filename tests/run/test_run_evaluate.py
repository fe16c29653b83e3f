"""Evaluating a run: from any directory, with queries and a gallery, on another list, without images of one camera."""

import dataclasses
import hashlib
import json
import warnings
from collections import Counter
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from io import StringIO

import numpy as np
import pytest
from finished_runs import final_state
from PIL import Image

from jaxmetric.data import GALLERY, LEARNING, QUERY, TEST, VALIDATION, LabelColumn, LabeledImages, SourceWarning
from jaxmetric.run import evaluate, train
from jaxmetric.run.config import Config, DataConfig, load_config
from jaxmetric.run.errors import ConfigError
from jaxmetric.run.evaluate import (
    _counted_queries,
    _fitting_advice,
    check_not_of_another_list,
    held_out,
    warn_of_undefined,
)
from jaxmetric.run.experiment import load_experiment, make_embedder
from jaxmetric.run.new_list import warn_of_learned
from jaxmetric.run.source import load_source

TINY = ["--encoder", "tiny", "--width", "4", "--image-size", "16", "--stored-size", "16", "--embedding-dim", "8"]
WORDS = [
    "soft_triple_csv",
    *TINY,
    "--loss",
    "soft_triple(centers_per_class=2)",
    "--steps",
    "2",
    "--classes-per-batch",
    "4",
    "--images-per-class",
    "2",
]
LEARNED, HELD_OUT, EACH = "abcd", "efgh", 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of eight people by two cameras, and lists of them."""
    folder, rng = tmp_path_factory.mktemp("people"), np.random.default_rng(0)
    people = [(f"{person}{i}.png", person, i) for person in LEARNED + HELD_OUT for i in range(EACH)]
    for name, _, _ in people:
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / name)

    def split(person, i):
        return "train" if person in LEARNED else ("query" if i < 2 else "gallery")

    def write(name, header, rows):
        (folder / name).write_text("\n".join([header, *rows]) + "\n")

    held_out = [row for row in people if row[1] in HELD_OUT]
    write("l.csv", "image,person,camera,split", [f"{n},{p},{i % 2},{split(p, i)}" for n, p, i in people])
    write("new.csv", "image,camera,hat,person,split", [f"{n},{i % 3},{i},{p}{p},test" for n, p, i in held_out])
    write("plain.csv", "image,person", [f"{n},{p}" for n, p, _ in held_out])
    write("nobody.csv", "image,camera,split", [f"{n},{i % 2},test" for n, p, i in held_out])
    write("known.csv", "image,person", [f"{n},{p}" for n, p, i in people if p in "ef" or n in ("a0.png", "b1.png")])
    write("single.csv", "image,person", [f"{person}0.png,{person}" for person in HELD_OUT])
    write("train.csv", "image,person,split", [f"{n},{p},train" for n, p, _ in held_out])
    write("upper.csv", "image,PERSON,Camera", [f"{n},{p},{i % 3}" for n, p, i in held_out])
    write("twice.csv", "image,PERSON,Person", [f"{n},{p},{p}" for n, p, _ in held_out])
    write("torn.csv", "image,person", [*[f"{n},{p}" for n, p, _ in held_out], "gone.png,e"])
    return folder


@pytest.fixture(scope="module")
def finished(folder):
    """A run that was started in the folder of its list, and what it printed."""
    printed = StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(printed):
        patch.chdir(folder)
        words = [*WORDS, "--csv", "l.csv", "--columns", "person", "--exclude-same", "camera", "--workdir", "run"]
        assert train.main(words) == 0
    return folder / "run", printed.getvalue()


def files(workdir):
    return {path.name: path.read_text() for path in workdir.glob("*.json")}


def nearest_is_right(embeddings, labels, allowed):
    """The share of queries, of those that can be right, whose nearest allowed image has their label."""
    right = []
    for q, row in enumerate(allowed):
        answers = np.flatnonzero(row)
        if (labels[answers] == labels[q]).any():
            distances = np.square(embeddings[q].astype(np.float64) - embeddings[answers]).sum(axis=1)
            right.append(labels[answers[distances.argmin()]] == labels[q])
    return np.mean(right)


def test_queries_search_the_gallery_without_the_images_of_their_person_by_their_camera(finished):
    workdir, printed = finished
    experiment = load_experiment(load_config(workdir))
    source, state = experiment.source, final_state(workdir)
    assert [column.name for column in source.columns] == ["person"]
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    assert (evaluation["split"], evaluation["queries"], evaluation["gallery"]) == ("query", 8, 16)
    embeddings = make_embedder(experiment)(state, source.images)
    person, camera = source.labels[:, 0], np.array([int(name[1]) % 2 for name in source.names])
    queries, gallery = source.split == QUERY, source.split == GALLERY
    same = (person[:, None] == person) & (camera[:, None] == camera)
    allowed = (queries[:, None] & gallery[None]) & ~same
    expected = nearest_is_right(embeddings, person, allowed)
    assert evaluation["columns"]["person"]["recall"]["1"] == pytest.approx(expected)
    assert "48 images, 8 identities: 24 learning, 8 query, 16 gallery\n" in printed
    assert "8 queries, each compared with 14 of the gallery:" in printed
    assert "  split: that of the list; --split disjoint is only for a list without a split column\n" in printed
    assert "warning: fewer than two validation images (24 learning, 8 query, 16 gallery): nothing is" in printed
    assert "8 queries, each compared with 14 of the gallery" in (workdir / "report.html").read_text()


def test_a_run_is_evaluated_from_any_directory(finished, tmp_path, monkeypatch):
    workdir, _ = finished
    before = files(workdir)
    monkeypatch.chdir(tmp_path)
    assert evaluate.main(["--workdir", str(workdir)]) == 0
    assert files(workdir) == before


def test_evaluating_another_list_of_test_images_keeps_existing_files(finished, folder, capsys):
    workdir, _ = finished
    before = files(workdir)
    assert evaluate.main(["--workdir", str(workdir), "--csv", str(folder / "new.csv")]) == 0
    printed = capsys.readouterr().out
    after = files(workdir)
    assert set(after) - set(before) == {"evaluation-new.json"}
    assert {name: after[name] for name in before} == before
    assert (workdir / "report-new.html").exists()
    evaluation = json.loads(after["evaluation-new.json"])
    assert list(evaluation["columns"]) == ["person"]
    assert (evaluation["queries"], evaluation["csv"]) == (24, str(folder / "new.csv"))
    assert "new.csv: hat was not learned and is left out\n" in printed
    # Of 24 images itself and the other of the same person by the same of three cameras are left out.
    assert "24 held-out images, each compared with 22 of the other held-out images:" in printed


def test_a_list_without_a_split_is_all_test_and_one_without_cameras_needs_a_flag(finished, folder, capsys):
    workdir, _ = finished
    words = ["--workdir", str(workdir), "--csv", str(folder / "plain.csv")]
    assert evaluate.main(words) == 1
    assert 'plain.csv has person; name one of these, or give --exclude-same "" to' in capsys.readouterr().err
    assert evaluate.main([*words, "--exclude-same", ""]) == 0
    assert "24 held-out images, each compared with 23 of the other held-out images:" in capsys.readouterr().out
    assert (workdir / "evaluation-plain-exclude-none.json").exists()


def test_evaluating_with_other_excluded_images_keeps_existing_files(finished, capsys):
    workdir, _ = finished
    before = files(workdir)
    assert json.loads(before["evaluation.json"])["exclude_same"] == "camera"
    assert evaluate.main(["--workdir", str(workdir), "--exclude-same", ""]) == 0
    assert "8 queries, each compared with 16 of the gallery:" in capsys.readouterr().out
    after = files(workdir)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"evaluation-exclude-none.json"}


def test_the_evaluation_of_another_list_of_the_same_name_is_not_overwritten(finished, folder, tmp_path, capsys):
    workdir, _ = finished
    (tmp_path / "new.csv").write_text((folder / "new.csv").read_text())
    words = ["--workdir", str(workdir), "--csv", str(tmp_path / "new.csv"), "--image-root", str(folder)]
    (workdir / "evaluation-new.json").write_text(json.dumps({"csv": str(folder / "new.csv")}))
    before = files(workdir)
    assert evaluate.main(words) == 1
    assert f"evaluation-new.json holds the evaluation of {folder / 'new.csv'}; move it away" in capsys.readouterr().err
    assert files(workdir) == before


def test_a_list_without_the_identity_of_the_run_is_a_one_line_error(finished, folder, capsys):
    assert evaluate.main(["--workdir", str(finished[0]), "--csv", str(folder / "nobody.csv")]) == 1
    assert "nobody.csv has no column 'person', the identity of the run; it has camera" in capsys.readouterr().err


def told(capsys, *words):
    """The exit code of an evaluation, what it printed, and its errors and warnings."""
    code = evaluate.main(list(map(str, words)))
    return code, *capsys.readouterr()


def test_learning_images_in_another_list_are_reported(finished, folder, tmp_path, capsys):
    workdir, _ = finished
    (tmp_path / "link").symlink_to(folder)
    for csv in (folder / "known.csv", tmp_path / "link" / "known.csv"):
        words = ["--workdir", workdir, "--csv", csv, "--exclude-same", ""]
        code, _, errors = told(capsys, *words)
        assert code == 0
        assert f"2 of the 14 images of {csv} to evaluate are learning images of the run, and not held out" in errors
    _, _, errors = told(capsys, "--workdir", workdir, "--csv", folder / "plain.csv", "--exclude-same", "")
    assert not errors


@pytest.mark.parametrize("split", ["within", "disjoint"])
def test_the_learning_images_of_a_run_on_a_list_without_a_split_are_those_that_were_learned(split, folder, tmp_path):
    data = DataConfig(source="csv", csv=str(folder / "plain.csv"), split=split, stored_size=16)
    source = load_source(data, seed=3)
    (tmp_path / "data.json").write_text(json.dumps({"images": len(source)}))
    config = Config(data=data, seed=3)
    learned = [folder / name for name, code in zip(source.names, source.split, strict=True) if code == LEARNING]
    with pytest.warns(UserWarning, match=f"{len(learned)} of the {len(source)} images of x.csv .* are learning images"):
        warn_of_learned(config, tmp_path, "x.csv", [folder / name for name in source.names])
    gone = dataclasses.replace(config, data=dataclasses.replace(data, csv=str(folder / "no.csv")))
    with pytest.warns(UserWarning, match="whether images of x.csv were learned could not be checked"):
        warn_of_learned(gone, tmp_path, "x.csv", learned)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--csv", "single.csv", "--exclude-same", ""], "every figure would be undefined; give at least two images of"),
        (["--csv", "new.csv", "--exclude-same", "person"], "exclude_same is 'person', the identity of the run"),
        (["--csv", "upper.csv", "--exclude-same", "PERSON"], "exclude_same is 'person', the identity of the run"),
        (["--exclude-same", "person"], "exclude_same is 'person', expected a column beside the identity"),
        (["--csv", "train.csv", "--exclude-same", ""], "leave its split column out to evaluate all images"),
        (["--csv", "nobody.csv"], "rename the column of the identity to 'person' in its header"),
        (["--csv", "twice.csv", "--exclude-same", ""], "rename the column of the identity to 'person' in its header"),
        (["--csv", "torn.csv", "--exclude-same", ""], "skip_bad (--skip-bad) leaves bad rows out"),
        (["--skip-bad"], "skip_bad is given without csv"),
    ],
)
def test_a_run_that_cannot_be_evaluated_is_reported_with_a_cure(words, message, finished, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    before = files(finished[0])
    code, _, errors = told(capsys, "--workdir", finished[0], *words)
    assert code == 1
    assert message in errors
    assert files(finished[0]) == before


def test_bad_rows_of_another_list_are_skipped(finished, folder, capsys):
    words = ["--workdir", finished[0], "--csv", folder / "torn.csv", "--exclude-same", "", "--skip-bad"]
    code, printed, errors = told(capsys, *words)
    assert code == 0
    assert "24 held-out images, each compared with 23 of" in printed
    assert "left out 1 bad row" in errors


def test_columns_of_another_list_are_matched_in_upper_and_lower_case(finished, folder, capsys):
    code, printed, _ = told(capsys, "--workdir", finished[0], "--csv", folder / "upper.csv")
    assert code == 0
    assert "upper.csv: its column 'PERSON' is taken as 'person'; its column 'Camera' is taken as 'camera'" in printed
    assert "24 held-out images, each compared with 22 of" in printed


def test_a_list_through_a_link_or_at_a_new_path_is_the_same_list(folder, tmp_path):
    (tmp_path / "link.csv").symlink_to(folder / "new.csv")
    (tmp_path / "moved.csv").write_text("image,person\n")
    (tmp_path / "other.csv").write_text("image,person\nx.png,a\n")
    evaluation, digest = tmp_path / "evaluation-new.json", hashlib.sha256(b"image,person\n").hexdigest()
    evaluation.write_text(json.dumps({"csv": str(folder / "new.csv")}))
    check_not_of_another_list(evaluation, str(tmp_path / "link.csv"))
    for there, new, same in (
        ("gone.csv", "moved.csv", True),
        ("gone.csv", "other.csv", False),
        ("link.csv", "moved.csv", False),
    ):
        evaluation.write_text(json.dumps({"csv": str(tmp_path / there), "csv_digest": digest}))
        with nullcontext() if same else pytest.raises(ConfigError, match="holds the evaluation of"):
            check_not_of_another_list(evaluation, str(tmp_path / new))


def test_a_run_whose_every_figure_would_be_undefined_is_refused_before_it_begins(folder, tmp_path, capsys):
    people = [(f"{person}{i}.png", person, i) for person in LEARNED for i in range(EACH)]
    rows = [f"{n},{p},{'mf'[p in 'ab']},{'test' if i < 2 else 'train'}" for n, p, i in people]
    (tmp_path / "l.csv").write_text("\n".join(["image,person,gender,split", *rows]))
    words = [*WORDS, "--csv", str(tmp_path / "l.csv"), "--image-root", str(folder), "--workdir", str(tmp_path / "run")]
    assert train.main([*words, "--exclude-same", "gender"]) == 1
    error = capsys.readouterr().err
    assert "no test image has another of its person to find among the learning set: every figure would be" in error
    assert 'name a column that differs within person, or give --exclude-same "" to leave out none' in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("splits", "split", "cure"),
    [
        (["train"] * 24, "disjoint", "give two rows or more the split test, or leave the split column out"),
        (
            ["test", "val"] + ["train"] * 22,
            "within",
            "give two rows or more the split test, or leave the split column out",
        ),
        (None, "within", "give more images, a split column with two rows or more of test, or --split disjoint"),
    ],
)
def test_a_list_with_too_few_held_out_images_is_reported_with_a_cure(splits, split, cure, folder, tmp_path, capsys):
    people = [f"{person}{i}.png,{person}" for person in LEARNED for i in range(EACH)]
    rows = [f"{row},{part}" for row, part in zip(people, splits, strict=True)] if splits else people[::EACH]
    header = "image,person,split" if splits else "image,person"
    (tmp_path / "l.csv").write_text("\n".join([header, *rows]))
    words = [*WORDS, "--csv", str(tmp_path / "l.csv"), "--image-root", str(folder), "--split", split]
    assert train.main([*words, "--workdir", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert "fewer than two images are held out for test, fewer than two for validation" in error
    assert error.strip().endswith(cure)


def test_a_list_of_test_images_is_refused_for_training_with_a_cure(folder, tmp_path, capsys):
    assert train.main([*WORDS, "--csv", str(folder / "new.csv"), "--workdir", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "new.csv has no learning images (24 test); to train, give some rows the split learning; " in error
    assert error.endswith(f"jaxmetric evaluate --workdir RUN --csv {folder / 'new.csv'}")
    assert not (tmp_path / "run").exists()


@dataclasses.dataclass
class Held:
    """What `held_out` reads of an experiment."""

    source: LabeledImages
    groups: np.ndarray | None


def images(people, splits, cameras=None):
    labels = np.array(people, np.int32)[:, None]
    source = LabeledImages(
        images=np.zeros((len(labels), 8, 8, 3), np.uint8),
        labels=labels,
        columns=(LabelColumn("person", tuple("abcdef")),),
        split=np.array(splits, np.int8),
        names=[str(i) for i in range(len(labels))],
    )
    return Held(source, None if cameras is None else np.column_stack([labels[:, 0], cameras]))


@pytest.mark.parametrize("cameras", [None, [0, 1, 0, 1, 0, 1, 0, 1, -1, 0]])
@pytest.mark.parametrize(
    ("part", "people", "splits", "answering"),
    [
        (QUERY, [0, 0, 1, 1, 0, 1, 2, -1, 2, 0], [QUERY] * 4 + [GALLERY] * 5 + [LEARNING], range(4, 9)),
        (TEST, [0, 0, 1, 1, 0, 1, 2, -1, 2, 0], [TEST] * 4 + [LEARNING] * 5 + [VALIDATION], range(4, 9)),
        (TEST, [3, 3, 4, 4, 0, 1, 2, -1, 2, 0], [TEST] * 4 + [LEARNING] * 6, range(4)),
        (VALIDATION, [3, 3, 4, 4, 0, 1, 2, -1, 2, 0], [VALIDATION] * 4 + [TEST] * 6, range(4)),
    ],
)
def test_a_query_is_compared_with_the_gallery_except_itself_and_its_person_by_its_camera(
    part, people, splits, answering, cameras
):
    held = held_out(images(people, splits, cameras), part)
    assert held.gallery.tolist() == list(answering)
    for q, left_out in zip(held.queries, held.exclude, strict=True):
        expected = {
            row
            for row, g in enumerate(held.gallery)
            if q == g or (cameras and people[q] == people[g] and cameras[q] == cameras[g] and cameras[q] >= 0)
        }
        assert set(left_out[left_out >= 0].tolist()) == expected
        assert max(Counter(left_out[left_out >= 0].tolist()).values(), default=1) == 1


@pytest.mark.parametrize(
    ("splits", "counted"),
    [
        ([QUERY, GALLERY, LEARNING], "1 query"),
        ([QUERY, QUERY, GALLERY], "2 queries"),
        ([TEST, LEARNING, LEARNING], "1 held-out image"),
        ([TEST, TEST, LEARNING], "2 held-out images"),
    ],
)
def test_compared_images_are_counted_by_name(splits, counted):
    part = QUERY if QUERY in splits else TEST
    assert _counted_queries(held_out(images([0, 0, 0], splits), part)) == counted


def test_a_column_without_matches_is_reported():
    lonely = images([3, 4, 0, 1], [TEST, TEST, LEARNING, LEARNING])
    with pytest.warns(UserWarning, match="no test image has another of its person to find among the other held-out"):
        warn_of_undefined(lonely, TEST)


def test_advice_on_flags_that_evaluation_lacks_is_omitted():
    notes = ["l.csv: one image each; is id the identity? --columns names the label columns", "l.csv: left out; rows 2"]
    with pytest.warns(SourceWarning) as told, _fitting_advice():
        for note in notes:
            warnings.warn(note, SourceWarning, stacklevel=1)
    assert [str(warning.message) for warning in told] == ["l.csv: one image each", notes[1]]
