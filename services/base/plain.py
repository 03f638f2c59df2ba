"""Text from outside on the terminal: paths, prompts, categories and messages may hold anything."""

from rich.text import Text


def printable(text: object) -> str:
    """The text with each character that a terminal may obey, such as ESC, written as an escape like `\\x1b`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def printable_lines(text: object) -> str:
    """The printable text, with its line breaks kept."""
    return "\n".join(map(printable, str(text).split("\n")))


def plain(text: object) -> Text:
    """The printable text for Rich, which reads no markup and no numbers in it."""
    return Text(printable(text))
