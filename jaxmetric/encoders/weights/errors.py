"""What goes wrong with files of weights."""

import struct
import zipfile
import zlib

# What a reader of damaged bytes may raise.
DAMAGE: tuple[type[Exception], ...] = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, RuntimeError, TypeError, ValueError),
    *(struct.error, zipfile.BadZipFile, zlib.error),
)
_LONGEST = 1000


class WeightsError(ValueError):
    r"""A file of weights cannot be read, or does not fit the network. The message is one line of printable text.

    Example:
      >>> print(WeightsError("names come from the file:\x1b[2J\n"))
      names come from the file:?[2J?
    """

    def __init__(self, message: str):
        printable = "".join(sign if sign.isprintable() else "?" for sign in message[:_LONGEST])
        super().__init__(printable + "..." * (len(message) > _LONGEST))
