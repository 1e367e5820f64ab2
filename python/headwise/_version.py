"""The version, a literal: asking the installed metadata would cost more than the rest of the import."""

__version__ = "0.1.0"
