"""Hooks of the site: converts formulas to MathML, and adds the arguments of a loss to its page.

Formulas are converted when the site is built. Browsers render MathML natively, so pages need no script and no
other host. TeX that cannot be converted stops the build.
"""

import html
import re
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import griffe
from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>'
    r"|:math:<code>(?P<role>.*?)</code>",  # the role of the docstrings
    re.DOTALL,
)
_REFERENCE = "::: jaxmetric.{}\n    options:\n      heading: Arguments\n      toc_label: Arguments\n"
_SAME_IN_MATHML = ((r"\operatorname*", r"\operatorname"), (r"{aligned}", "{split}"), (r"\mathbb{1}", "\U0001d7d9"))
_LIMITS = {"msub": "munder", "msup": "mover", "msubsup": "munderover"}
_TAKES_LIMITS = ("∑", "∏", "max", "min")


class Docstrings(griffe.Extension):
    """Rewrites docstrings for mkdocstrings."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrites a docstring; see the comments."""
        if not obj.docstring:
            return
        text = re.sub(
            r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE
        )  # the name that mkdocstrings expects
        text = re.sub(r"^( +(?:\w+: )?)>(?!>>)", r"\1\\>", text, flags=re.MULTILINE)  # "> 0" is not a quotation
        text = re.sub(
            r"^(?! *\* )( *\S.*)\n(?= *\* )", r"\1\n\n", text, flags=re.MULTILINE
        )  # a list needs a blank line before it
        obj.docstring.value = text


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Adapts the Markdown of a page, which also reads well as a file; see the comments."""
    source = page.file.src_uri
    if "/" not in source:  # links to files that are not part of the site
        markdown = re.sub(r"\[([^]]+)\]\(\.\./[^)]*\)", r"\1", markdown)
    markdown = re.sub(
        r"^(\|.*\|)\n(?=#)", r"\1\n\n", markdown, flags=re.MULTILINE
    )  # a table needs a blank line before a heading
    loss = re.fullmatch(r"losses/(\w+_loss)\.md", source)
    return f"{markdown}\n\n{_REFERENCE.format(loss[1])}" if loss else markdown


def on_page_content(content: str, *, page: Any, **_: Any) -> str:
    """Turns the formulas of a page into MathML."""

    def mathml(match: re.Match[str]) -> str:
        tex = html.unescape(match["tex"] if match["role"] is None else match["role"])
        try:
            formula = to_mathml(tex, display="block" if match["tag"] == "div" else "inline")
        except Exception as error:
            raise PluginError(f"{page.file.src_uri}: {tex!r} has no MathML: {error!r}") from error
        return f'<div class="formula">{formula}</div>' if match["tag"] == "div" else formula

    return _FORMULA.sub(mathml, content)


def to_mathml(tex: str, display: str) -> str:
    """Converts one formula; raises ValueError if a command is unknown."""
    for ours, theirs in _SAME_IN_MATHML:
        tex = tex.replace(ours, theirs)
    tex = re.sub(r"(\\[bB]ig+r?[])])(?=[_^])", r"{\1}", tex)  # braces, so that the bracket is scaled
    formula = ElementTree.fromstring(convert(tex, xmlns="", display=display))
    unknown = re.findall(r"\\[A-Za-z]+", "".join(formula.itertext()))
    if unknown:
        raise ValueError(f"unknown commands {', '.join(unknown)}")
    for parent in formula.iter():
        _join_letters(parent)
        for element, following in pairwise([*parent, None]):
            _space(element, following)
        if parent.tag in _LIMITS and parent[0].text in _TAKES_LIMITS:
            parent.tag = _LIMITS[parent.tag]
    return ElementTree.tostring(formula, encoding="unicode")


def _join_letters(parent: ElementTree.Element) -> None:
    """Merges the letters of a name such as softmax into one identifier."""
    for previous, element in reversed(list(pairwise(parent))):
        if all(each.tag == "mi" and each.get("mathvariant") == "normal" for each in (element, previous)):
            previous.text = f"{previous.text}{element.text}"
            parent.remove(element)


def _space(element: ElementTree.Element, following: ElementTree.Element | None) -> None:
    """Sets the space around operators as in TeX."""
    text = element.text or ""
    if element.tag in ("mi", "mo") and re.fullmatch("[a-z]{2,}", text) and element.get("mathvariant") is None:
        element.tag = "mo"  # "log x", not "logx"
        after = "0" if following is not None and following.text == "(" else "0.167em"
        element.attrib |= {"form": "prefix", "lspace": "0.167em", "rspace": after, "movablelimits": "true"}
    if element.tag == "mo" and text == "|" and element.get("stretchy") == "false":
        element.attrib |= {"lspace": "0", "rspace": "0"}
    if element.tag == "mo" and element.get("minsize") and text in tuple("()[]{}|"):
        element.attrib |= {"form": "prefix" if text in "([{" else "postfix", "stretchy": "true"}
