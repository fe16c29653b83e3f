"""The list of losses."""

import inspect
import re

import pytest

import jaxmetric
from jaxmetric.run.losses import main
from jaxmetric.run.terms import find_loss

LOSSES = sorted(name.removesuffix("_loss") for name in jaxmetric.__all__ if name.endswith("_loss"))


def printed(capsys, *words):
    assert main(words) == 0
    return capsys.readouterr().out


def test_the_list_has_every_exported_loss_in_the_family_of_its_file(capsys):
    families = re.split(r"\n\n(?=\w)", printed(capsys))[1:]
    found = {}
    for family in families:
        heading, *lines = family.split("\n")
        found |= {line.strip().partition("(")[0]: heading for line in lines if re.match(r"  \w", line)}
    assert sorted(found) == LOSSES
    for name, heading in found.items():
        assert getattr(jaxmetric, f"{name}_loss").__module__ == f"jaxmetric.losses.{heading.replace(' ', '_')}"


def test_the_list_has_every_option_with_its_default_and_those_of_all_losses_once(capsys):
    text = printed(capsys)
    entries = re.split(r"\n+ {0,2}(?=\w)", text)
    for name in LOSSES:
        (entry,) = [" ".join(entry.split()) for entry in entries if entry.startswith(f"{name}(")]
        for option, parameter in inspect.signature(getattr(jaxmetric, f"{name}_loss")).parameters.items():
            written = option if parameter.default is parameter.empty else f"{option}={parameter.default!r}"
            if option in ("where", "weights", "reduction", "has_aux"):
                assert len(re.findall(rf"(?<!\w){re.escape(written)}", text)) == 1
            elif option not in ("embeddings", "labels", "other"):
                assert re.search(rf"[(, ]{re.escape(written)}[,)]", entry), f"{name}: {written}"


def test_the_list_fits_into_100_columns(capsys):
    assert max(map(len, printed(capsys).splitlines())) <= 100


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_explained_with_every_argument(name, capsys):
    loss = getattr(jaxmetric, f"{name}_loss")
    text = printed(capsys, name)
    assert printed(capsys, f"{name}_loss") == text
    assert text.startswith(f"{loss.__module__}.{name}_loss\n\n")
    for argument in inspect.signature(loss).parameters:
        assert re.search(rf"^  {argument}(=.*)?\n      \S", text, re.MULTILINE), argument


def test_an_unknown_loss_is_a_one_line_error_with_the_nearest_name(capsys):
    assert main(["quadruplets"]) == 1
    expected = "error: no loss is called 'quadruplets' (did you mean quadruplet?); jaxmetric losses lists all\n"
    assert capsys.readouterr() == ("", expected)


def test_losses_are_named_without_their_ending():
    assert find_loss("arcface") is jaxmetric.arcface_loss
