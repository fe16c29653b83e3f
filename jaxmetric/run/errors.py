"""What is wrong with a configuration."""


class ConfigError(ValueError):
    """The configuration cannot be run; one line that names the field."""
