"""The exception that means "the user can fix this", and how to find it in errors from other processes."""

import re

_URL = re.compile(r"(\w+)://(\S*)@")
"""A scheme, and everything up to the last `@`. A secret may contain a slash, a quote or an `@` itself."""
_HTTP_PATH = re.compile(r"[^:/@]+(:\d+)?/.*")
_OTHER_PATH = re.compile(r"[^:@]+/[^:]*")


def _is_path(scheme: str, text: str) -> bool:
    """Whether the text before an `@` is a host and the beginning of a path, so that the `@` belongs to the path."""
    return bool((_HTTP_PATH if scheme in ("http", "https") else _OTHER_PATH).fullmatch(text))


def has_credentials(text: str) -> bool:
    """Whether a text contains a URL with a name or a secret before its host."""
    return any(not _is_path(*found) for found in _URL.findall(text))


def redacted(text: str) -> str:
    """A text without the credentials of its URLs."""
    return _URL.sub(lambda found: found[0] if _is_path(found[1], found[2]) else f"{found[1]}://…@", text)


class UserError(Exception):
    """A mistake of the user: one sentence that names the problem and the fix.

    The command line prints the sentence without a traceback and exits with code 2. Credentials in the URLs that it
    quotes are replaced.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(redacted(sentence))


def cause_of(error: BaseException) -> BaseException:
    """The error itself, or the error from another process that Ray has wrapped in it."""
    return getattr(error, "cause", None) or error


_QUOTED = re.compile(rf"^{re.escape(UserError.__module__)}\.{UserError.__qualname__}: (.+)$", re.MULTILINE)


def refusal(error: BaseException) -> UserError | None:
    """The UserError behind an error, in whichever process it was raised; None if there is none.

    An error from a task is the cause of Ray's error. An error from the constructor of an actor or of a Serve replica
    arrives only as text: Ray quotes its traceback, and the last line has the sentence.
    """
    cause = cause_of(error)
    if isinstance(cause, UserError):
        return cause
    return quoted_refusal(str(error)) if cause is error else None


def quoted_refusal(text: str) -> UserError | None:
    """The UserError in a text that quotes the traceback of another process; None if there is none."""
    found = _QUOTED.findall(text)
    return UserError(found[-1].strip()) if found else None


_ERRNO = re.compile(r"^\[Errno \d+\] ")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or of its cause in another process, without the text of Ray and Arrow.

    The number of a system's error is left out, because its name follows.
    """
    return _ERRNO.sub("", str(refusal(error) or cause_of(error)).strip().partition("\n")[0])


def death(error: BaseException) -> str:
    """Why the process of an actor ended: the exception of its constructor, or Ray's report without Ray's guesses."""
    lines = [line.strip() for line in str(cause_of(error)).splitlines()]
    lines = [line for line in lines if line and not line.startswith("The actor never ran")]
    return lines[-1].partition(" Some common causes")[0] if lines else type(error).__name__
