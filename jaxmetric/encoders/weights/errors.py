"""What goes wrong with files of weights."""


class WeightsError(ValueError):
    """A file of weights cannot be read, or does not fit the network."""
