"""Finds the file that a list names: `image_file`.

An accented letter is one character (composed, NFC) or a letter and an accent (decomposed, NFD). Both look the same, but
most file systems distinguish them, and archives from macOS hold decomposed names.
"""

import os
import unicodedata
from pathlib import Path


def image_file(root: Path, name: str) -> Path:
    """Returns the file with a name in a folder. Each part of the name may be composed or decomposed on disk."""
    file = root / name
    if name.isascii() or os.path.exists(file):  # os.path.exists returns False for names so long that Path.exists raises
        return file
    found = root
    for part in Path(name).parts:
        forms = (part, unicodedata.normalize("NFC", part), unicodedata.normalize("NFD", part))
        existing = [found / form for form in forms if os.path.exists(found / form)]
        if not existing:
            return file
        found = existing[0]
    return found


def spelled_out(name: str) -> str:
    r"""Returns the addition to a message about a missing file if its name is not ASCII, else "".

    Example:
      >>> spelled_out("\xe9.png")
      " (spelled '\\xe9.png'; composed and decomposed accents were tried)"
    """
    if name.isascii():
        return ""
    return f" (spelled {name!a}; composed and decomposed accents were tried)"
