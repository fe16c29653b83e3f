"""Finds the name that a person meant."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns " (did you mean NAME?)" for the known name that is nearest, or "" if none is near.

    Example:
      >>> did_you_mean("trian", ["train", "evaluate"]), did_you_mean("x", ["train", "evaluate"])
      (' (did you mean train?)', '')
    """
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""
