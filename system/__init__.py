"""Puts the roles together: command line, configuration, training loop, run folder, report."""

__version__ = "0.1.0"
