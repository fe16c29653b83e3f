"""Mean and spread over runs, and what is said of runs that cannot be compared."""

import json

import pytest

from jaxmetric.run import compare


def _write_run(workdir, role, coherence):
    workdir.mkdir()
    part = {
        "columns": {"role": {"recall": {"1": role}}},
        "joint": {"all_correct": 0.5},
        "coherence": {"spearman": coherence},
    }
    (workdir / "evaluation.json").write_text(json.dumps({**part, "untrained": part}))
    (workdir / "config.json").write_text(json.dumps({"loss": f"{role}*triplet"}))
    return str(workdir)


def test_the_table_has_mean_and_standard_deviation(tmp_path, capsys):
    runs = [_write_run(tmp_path / name, role, None) for name, role in (("a", 0.8), ("b", 0.9), ("c", 1.0))]
    assert compare.main(["--runs", f"seeds={','.join(runs)}", f"one={runs[0]}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["seeds", "(3)", "one", "(1)"]
    assert lines[1].split() == ["role", "Recall@1", "0.900", "±", "0.100", "0.800"]
    assert lines[3].split() == ["coherence", "undefined", "undefined"]


def test_the_objectives_of_each_group_are_printed_below_the_table(tmp_path, capsys):
    runs = [_write_run(tmp_path / name, role, 0.5) for name, role in (("a", 0.8), ("b", 0.9), ("c", 0.8))]
    assert compare.main(["--runs", f"seeds={','.join(runs)}", f"one={runs[1]}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == ["seeds: 0.8*triplet", "seeds: 0.9*triplet", "one: 0.9*triplet"]


def test_two_groups_of_one_name_are_an_error(tmp_path, capsys):
    run = _write_run(tmp_path / "a", 0.8, 0.5)
    assert compare.main(["--runs", f"one={run}", f"one={run}"]) == 1
    assert capsys.readouterr().err == "error: runs has two groups called 'one', expected each group once\n"


def test_nothing_to_compare_is_an_error(capsys):
    assert compare.main(["--runs"]) == 1
    assert capsys.readouterr() == ("", "error: runs is empty, expected TITLE=DIR,DIR,...\n")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("nothing", "expected TITLE=DIR"),
        ("a=b,", "with each directory once"),
        ("a=b,b", "with each directory once"),
        ("a=nowhere", "holds no evaluation"),
    ],
)
def test_a_directory_without_an_evaluated_run_is_a_one_line_error(word, message, capsys):
    assert compare.main(["--runs", word]) == 1
    assert message in capsys.readouterr().err
