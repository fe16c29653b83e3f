"""Finds the known name nearest to a misspelled one."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns " (did you mean NAME?)" for the known name that is nearest, or "" if none is near.

    Example:
      >>> did_you_mean("trian", ["train", "evaluate"]), did_you_mean("x", ["train", "evaluate"])
      (' (did you mean train?)', '')
    """
    near = _nearest(name, known)
    return f" (did you mean {near}?)" if near else ""


def nearest_or_all(name: str, known: Iterable[str]) -> str:
    """Returns "; did you mean NAME?" for the known name that is nearest; if none is near, a list of at most 20 names.

    Example:
      >>> nearest_or_all("margn", ["margin", "scale"]), nearest_or_all("x", ["margin", "scale"])
      ('; did you mean margin?', '; there are margin, scale')
    """
    known = list(known)
    if near := _nearest(name, known):
        return f"; did you mean {near}?"
    return f"; there are {', '.join(known)}" if 0 < len(known) <= 20 else ""


def _nearest(name: str, known: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, known, n=1)), None)
