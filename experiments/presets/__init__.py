"""Presets by name: functions that return a frozen `Config`, one file for each experiment."""

from experiments.config import Config
from experiments.presets.csv import quadruplet_csv, soft_triple_csv
from experiments.presets.emoji_people import debug, emoji_people, emoji_unseen

DEFAULT = "emoji_people"

PRESETS: dict[str, Config] = {
    "emoji_people": emoji_people(),
    "emoji_unseen": emoji_unseen(),
    "debug": debug(),
    "quadruplet_csv": quadruplet_csv(),
    "soft_triple_csv": soft_triple_csv(),
}
