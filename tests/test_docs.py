"""The pages of the site: what their examples print, what they cover, and that each is in the navigation."""

import ast
import doctest
import inspect
import math
import re
from pathlib import Path

import pytest

import jaxmetric

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
LOSSES = sorted(name for name in jaxmetric.__all__ if name.endswith("_loss"))
HEADINGS = ["Formula", "When to use it", "The paper's settings", "Cost", "Example", "Source"]


def relative(path):
    return path.relative_to(DOCS).as_posix()


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in PAGES if ">>> " in path.read_text()], ids=relative)
def test_the_examples_print_what_the_page_says(path):
    text = re.sub(r"^```.*$", "", path.read_text(), flags=re.MULTILINE)  # the end of a block is no output
    examples = doctest.DocTestParser().get_doctest(text, {}, relative(path), str(path), 0)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert examples.examples
    assert not runner.run(examples).failed


def test_every_python_block_is_an_example_or_a_named_file():
    for path in PAGES:
        for block in re.findall(r"^```python\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL):
            assert re.match(r">>> |# \w+\.py\n", block), f"{relative(path)}: {block}"


def test_the_navigation_has_every_page():
    listed = re.findall(r"^ *- (?:\w+: )?([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == [relative(path) for path in PAGES]


def families():
    """The losses of each file of `jaxmetric.losses`, in their order there."""
    for path in sorted((ROOT / "jaxmetric" / "losses").glob("[a-z]*.py")):
        functions = [each.name for each in ast.parse(path.read_text()).body if isinstance(each, ast.FunctionDef)]
        yield path.stem, [name for name in functions if name.endswith("_loss")]


@pytest.mark.parametrize(
    ("page", "entry"), [("mkdocs.yml", r"- losses/(\w+_loss)\.md"), ("docs/losses/index.md", r"^\| \[(\w+_loss)\]")]
)
def test_navigation_and_chooser_list_the_losses_by_the_files_they_are_in(page, entry):
    listed = re.findall(entry, (ROOT / page).read_text(), re.MULTILINE)
    for family, names in families():
        first = listed.index(names[0])
        assert listed[first : first + len(names)] == names, family


def test_every_loss_has_a_page_and_every_page_a_loss():
    assert sorted(path.stem for path in (DOCS / "losses").glob("*_loss.md")) == LOSSES


@pytest.mark.parametrize("name", LOSSES)
def test_the_page_of_a_loss_follows_the_template(name):
    text = (DOCS / "losses" / f"{name}.md").read_text()
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert re.findall(r"^# (.+)$", prose, re.MULTILINE), "the title"
    assert re.findall(r"^## (.+)$", prose, re.MULTILINE) == HEADINGS
    assert f"`jaxmetric.{name}(" in prose
    assert "$$" in prose, "the formula"
    assert ">>> " in text, "the example"


@pytest.mark.parametrize("name", LOSSES)
def test_the_page_of_a_loss_knows_its_arguments(name):
    written = re.search(rf"`jaxmetric\.{name}\((.*?)\)`", (DOCS / "losses" / f"{name}.md").read_text(), re.DOTALL)[1]
    call = ast.parse(f"loss({written.replace('*, ', '').removesuffix(', ...')})", mode="eval").body
    parameters = inspect.signature(getattr(jaxmetric, name)).parameters
    assert [argument.id for argument in call.args] == list(parameters)[: len(call.args)]
    for keyword in call.keywords:
        assert parameters[keyword.arg].default == eval(ast.unparse(keyword.value), {"math": math}), keyword.arg


def test_the_chooser_lists_every_loss_with_what_it_takes():
    chooser = (DOCS / "losses" / "index.md").read_text()
    rows = re.findall(
        r"^\| \[(\w+)\]\(\1\.md\) \| [^|]+ \| (\d) \| (?:yes|) *\| (yes|) *\| (?:yes|) *\|$", chooser, re.MULTILINE
    )
    assert sorted(name for name, *_ in rows) == LOSSES
    for name, numbers, references in rows:
        parameters = inspect.signature(getattr(jaxmetric, name)).parameters
        defaults = [parameter.default for parameter in parameters.values()]
        assert int(numbers) == sum(type(default) in (int, float) for default in defaults), name
        assert bool(references) == ("references" in parameters), name


def rows_of_the_map():
    """`(names of pytorch-metric-learning, names here)` for each row of the tables of the page."""
    for line in (DOCS / "coming_from_pml.md").read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 3 and cells[0].startswith("`"):
            yield re.findall(r"`(\w+)`", cells[0]), re.findall(r"`([^`]+)`", cells[1])


def test_every_name_in_the_map_exists_here():
    keywords = {key for name in jaxmetric.__all__ for key in parameters_of(getattr(jaxmetric, name))}
    for theirs, ours in rows_of_the_map():
        for code in ours:
            name, call = re.match(r"([\w.]+)(?:\((.*)\))?", code).groups()
            if "=" in code and call is None:
                assert name in keywords, f"{theirs}: no argument {name}"
            else:
                assert_exists(name)
                for keyword in re.findall(r"(\w+)=", call or ""):
                    assert keyword in parameters_of(getattr(jaxmetric, name)), f"{theirs}: {name} has no {keyword}"


def parameters_of(exported):
    return inspect.signature(exported).parameters if callable(exported) else ()


def assert_exists(name):
    module, _, attribute = name.rpartition(".")
    owner = pytest.importorskip(f"jaxmetric.{module}") if module else jaxmetric
    assert hasattr(owner, attribute), f"jaxmetric.{name} does not exist"


def test_the_map_has_every_name_of_pytorch_metric_learning():
    pytest.importorskip("torch", reason="needs the extra `parity`")
    pytest.importorskip("pytorch_metric_learning", reason="needs the extra `parity`")
    from pytorch_metric_learning import distances, losses, miners, reducers, regularizers, samplers

    modules = (losses, miners, distances, reducers, regularizers, samplers)
    exported = {name for module in modules for name, value in vars(module).items() if inspect.isclass(value)}
    base = {name for name in exported if re.match(r"Base[A-Z]|\w+Mixin$", name)}
    mapped = [name for theirs, _ in rows_of_the_map() for name in theirs]
    others = {"AccuracyCalculator", "InferenceModel", "DistributedLossWrapper", "DistributedMinerWrapper"}
    assert (exported - base) | others <= set(mapped)
    assert len(mapped) == len(set(mapped))


def test_before_and_after_give_the_same_number():
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    pytest.importorskip("pytorch_metric_learning", reason="needs the extra `parity`")
    text = (DOCS / "coming_from_pml.md").read_text()
    before, after = (
        re.search(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)[1] for kind in ("py", "python")
    )
    ours = {}
    for example in doctest.DocTestParser().get_examples(after):
        exec(example.source, ours)
    theirs = {name: torch.tensor(ours[name].tolist()) for name in ("embeddings", "labels")}
    exec(before, theirs)
    assert theirs["loss"].item() == pytest.approx(float(ours["loss"]), rel=1e-5)
