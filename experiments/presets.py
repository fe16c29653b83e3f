"""The presets of `python -m experiments.train`: the built-in ones, and those of the papers' experiments."""

from jaxmetric.run.presets import BUILT_IN, Preset

# None yet: the settings of the two papers are the built-in quadruplet_csv and soft_triple_csv.
PAPERS: dict[str, Preset] = {}

PRESETS: dict[str, Preset] = {**BUILT_IN, **PAPERS}
