"""The list of losses."""

import inspect
import re

import pytest

import jaxmetric
from jaxmetric.run.losses import main
from jaxmetric.run.terms import find_loss, miner_names, parse_terms

LOSSES = sorted(name.removesuffix("_loss") for name in jaxmetric.__all__ if name.endswith("_loss"))


def printed(capsys, *words):
    assert main(words) == 0
    return capsys.readouterr().out


def test_the_list_has_every_exported_loss_in_the_family_of_its_file(capsys):
    families = re.split(r"\n\n(?=\w)", printed(capsys))[1:]
    found = set()
    for family in families:
        heading, *lines = family.split("\n")
        found |= {(heading, line.strip().partition("(")[0]) for line in lines if re.match(r"  \w", line)}
    miners = {name for heading, name in found if heading == "miners, for pairs="}
    assert miners == set(miner_names())
    found = {(heading, name) for heading, name in found if heading != "miners, for pairs="}
    assert sorted(name for _, name in found) == LOSSES
    for heading, name in found:
        assert getattr(jaxmetric, f"{name}_loss").__module__ == f"jaxmetric.losses.{heading.replace(' ', '_')}"


def test_the_list_is_of_the_options_that_an_expression_takes_with_their_defaults(capsys):
    losses = printed(capsys).partition("\nminers")[0]
    entries = re.split(r"\n+ {0,2}(?=\w)", losses)
    values = {"pairs": "'batch_hard'", "memory": "8", "centers_per_class": "2"}
    for name in LOSSES:
        (entry,) = [" ".join(entry.split()) for entry in entries if entry.startswith(f"{name}(")]
        options = re.findall(r"[(,] ?(\w+)(?:=([^()]*?|\(.*?\)))?(?=[,)])", entry)
        arguments = [f"{option}={values.get(option) or default or 2}" for option, default in options]
        (term,) = parse_terms(f"{name}({', '.join([*arguments, 'on=()', 'learn=()'])})")
        assert set(dict(term.options)) == {option for option, _ in options} - values.keys()
        for option, parameter in inspect.signature(getattr(jaxmetric, f"{name}_loss")).parameters.items():
            if option in term.loss.__kwdefaults__ and option in dict(options) and option != "pairs":
                assert dict(options)[option] == repr(parameter.default)


def test_a_miner_is_explained_with_its_options(capsys):
    text = printed(capsys, "distance_weighted")
    assert text.startswith("jaxmetric.mining.distance_weighted\n\n")
    assert re.findall(r"^  (\S+)", text, re.MULTILINE) == [
        "cutoff=0.5",
        "nonzero_loss_cutoff=1.4",
        "distance='euclidean'",
    ]


@pytest.mark.parametrize("name", sorted(set(miner_names()) & set(LOSSES)))
def test_a_name_of_a_loss_and_a_miner_explains_both(name, capsys):
    assert re.findall(r"^jaxmetric\.(\w+)\.", printed(capsys, name), re.MULTILINE) == ["losses", "mining"]


def test_the_list_fits_into_100_columns(capsys):
    assert max(map(len, printed(capsys).splitlines())) <= 100


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_explained_with_every_argument(name, capsys):
    loss = getattr(jaxmetric, f"{name}_loss")
    text = printed(capsys, name)
    assert printed(capsys, f"{name}_loss") == text
    assert text.startswith(f"{loss.__module__}.{name}_loss\n\n")
    text = text.partition("\njaxmetric.mining.")[0]
    names = re.findall(r"^  (\w+)(?:=.*)?$", text, re.MULTILINE)
    assert len(set(names)) == len(names)
    for argument in inspect.signature(loss).parameters:
        assert re.search(rf"^  {argument}(=.*)?\n      \S", text, re.MULTILINE), argument


def test_an_unknown_loss_is_a_one_line_error_with_the_nearest_name(capsys):
    assert main(["quadruplets"]) == 1
    expected = "error: no loss is called 'quadruplets' (did you mean quadruplet?); jaxmetric losses lists all\n"
    assert capsys.readouterr() == ("", expected)


def test_losses_are_named_without_their_ending():
    assert find_loss("arcface") is jaxmetric.arcface_loss
