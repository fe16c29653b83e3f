"""Presets by name: functions that return a frozen `Config`, one file per experiment."""

from collections.abc import Callable
from typing import TypeAlias

from jaxmetric.run.config import Config
from jaxmetric.run.presets.csv import quadruplet_csv, soft_triple_csv
from jaxmetric.run.presets.emoji_people import debug, emoji_people, emoji_unseen

Preset: TypeAlias = Callable[[], Config]

DEFAULT = "emoji_people"

BUILT_IN: dict[str, Preset] = {
    "emoji_people": emoji_people,
    "emoji_unseen": emoji_unseen,
    "debug": debug,
    "quadruplet_csv": quadruplet_csv,
    "soft_triple_csv": soft_triple_csv,
}
PRESETS: dict[str, Config] = {name: preset() for name, preset in BUILT_IN.items()}
