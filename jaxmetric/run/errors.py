"""The error for invalid configurations."""


class ConfigError(ValueError):
    """Raised for a configuration that cannot run; the message is one line that names the field."""
