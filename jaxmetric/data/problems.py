"""Collects and reports the problems of a list of images: `Problems`."""

from collections.abc import Sequence
from pathlib import Path

from jaxmetric.data.labeled_images import SourceWarning

_PROBLEMS_SHOWN = 10


class ManifestError(ValueError):
    """The problems of a manifest, one per line.

    Attributes:
      problems: all of them. The message shows the first ten, then how the file was read and what to do.
    """

    def __init__(self, problems: Sequence[str], cure: str = "") -> None:
        super().__init__("\n".join([*_shown(problems), *([cure] if cure else [])]))
        self.problems = tuple(problems)


class ManifestWarning(SourceWarning):
    """Reports the rows that `skip_bad` skipped; `problems` says which and why."""

    def __init__(self, rows: int, problems: Sequence[str]) -> None:
        super().__init__("\n".join([f"left out {rows} bad row{'s' * (rows != 1)}:", *_shown(problems)]))
        self.rows = rows
        self.problems = tuple(problems)


class Problems:
    """Collects problems by line, and notes on how the file was interpreted.

    Attributes:
      bad_lines: the lines that `skip_bad` can skip.
      notes: one line each, for a `SourceWarning`.
      read_as: the separator and the header, once they are known.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = path
        self._found: list[tuple[int, str]] = []
        self.bad_lines: set[int] = set()
        self.notes: list[str] = []
        self.read_as = ""

    def add(self, line: int, what: str, *, last: int | None = None) -> None:
        """Adds a problem of one line, or of all lines from `line` to `last`."""
        self._found.append((line, what))
        self.bad_lines.update(range(line, (last or line) + 1))

    def note(self, what: str) -> None:
        """Adds a note on the whole file."""
        self.notes.append(f"{self._path}: {what}")

    def lines(self) -> list[str]:
        """Returns the problems in the order of their lines."""
        return [f"{self._path}:{line}: {what}" for line, what in sorted(self._found)]

    def refusal(self, what: str, line: int | None = None) -> ManifestError:
        """Returns the error for a file that cannot be read at all, followed by the problems of its lines."""
        at = f":{line}" if line else ""
        read_as = f" (read as: {self.read_as})" if self.read_as else ""
        return ManifestError([f"{self._path}{at}: {what}{read_as}", *self.lines()])

    def error(self) -> ManifestError:
        """Returns the error for bad rows."""
        return ManifestError(self.lines(), f"read as: {self.read_as}; skip_bad (--skip-bad) leaves bad rows out")


def counted(number: int, noun: str, plural: str = "") -> str:
    """Formats a number with its noun.

    Example:
      >>> counted(1, "row"), counted(1200, "identity", "identities")
      ('1 row', '1,200 identities')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def byte_size(size: float) -> str:
    """Formats a number of bytes.

    Example:
      >>> byte_size(300), byte_size(5 * 2**20)
      ('300 B', '5.0 MiB')
    """
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{size / scale:,.1f} {unit}"
    return f"{size:,.0f} B"


def some_of(names: Sequence[str], shown: int = 5) -> str:
    """Lists the first names and counts the rest.

    Example:
      >>> some_of(["a", "b", "c"], shown=2)
      'a, b and 1 more'
    """
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


def _shown(problems: Sequence[str]) -> list[str]:
    more = len(problems) - _PROBLEMS_SHOWN
    return [*problems[:_PROBLEMS_SHOWN], *([f"... and {more} more"] if more > 0 else [])]
