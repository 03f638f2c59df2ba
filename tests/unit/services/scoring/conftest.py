"""A server on loopback for the scorers that ask an outside service."""

from tests.helpers.loopback import serve

__all__ = ["serve"]
