"""Presets by name: functions that return a frozen `Config`, one file for each experiment."""

from jaxmetric.run.config import Config
from jaxmetric.run.presets.csv import quadruplet_csv, soft_triple_csv
from jaxmetric.run.presets.emoji_people import debug, emoji_people, emoji_unseen

DEFAULT = "emoji_people"

_FUNCTIONS = (emoji_people, emoji_unseen, debug, quadruplet_csv, soft_triple_csv)

PRESETS: dict[str, Config] = {function.__name__: function() for function in _FUNCTIONS}
ABOUT: dict[str, str] = {function.__name__: (function.__doc__ or "").split("\n")[0] for function in _FUNCTIONS}
