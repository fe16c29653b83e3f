"""The README's examples print what it says, and its commands are the ones that CI runs."""

import doctest
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_examples_print_what_the_readme_says():
    failures, examples = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert examples
    assert not failures


def test_ci_finds_the_test_command():
    assert '\npip install -e ".[test]" && pytest\n' in (ROOT / "README.md").read_text()
    assert "grep -m 1 '^pip install -e \"\\.\\[test\\]\"' README.md" in (ROOT / ".ci" / "run").read_text()
