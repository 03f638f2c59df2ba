"""The one exception that means "the user can fix this", and how it is found in errors of other processes."""

import re

_URL = re.compile(r"(\w+)://(\S*)@")
"""A scheme, and all before the last `@`: a secret may hold a slash, a quote or an `@` itself."""
_HTTP_PATH = re.compile(r"[^:/@]+(:\d+)?/.*")
_OTHER_PATH = re.compile(r"[^:@]+/[^:]*")


def _is_path(scheme: str, text: str) -> bool:
    """Whether what stands before an `@` is a host and a path that holds it."""
    return bool((_HTTP_PATH if scheme in ("http", "https") else _OTHER_PATH).fullmatch(text))


def has_credentials(text: str) -> bool:
    """Whether a text holds a URL with a name or a secret before its host."""
    return any(not _is_path(*found) for found in _URL.findall(text))


def redacted(text: str) -> str:
    """A text without the credentials of its URLs."""
    return _URL.sub(lambda found: found[0] if _is_path(found[1], found[2]) else f"{found[1]}://…@", text)


class UserError(Exception):
    """A mistake in what the user gave: one sentence that names the thing and the fix.

    The command line prints it without a traceback and exits with code 2. Credentials in a URL that it repeats are
    replaced.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(redacted(sentence))


def cause_of(error: BaseException) -> BaseException:
    """The error itself, or the one in another process that Ray has wrapped in it."""
    return getattr(error, "cause", None) or error


_QUOTED = re.compile(rf"^{re.escape(UserError.__module__)}\.{UserError.__qualname__}: (.+)$", re.MULTILINE)


def refusal(error: BaseException) -> UserError | None:
    """The user's mistake behind an error, wherever it was raised; None if it is another kind of error.

    What a task raises comes as the cause of Ray's error. What the constructor of an actor or of a Serve replica raises
    comes as text alone: Ray quotes its traceback, whose last line has the sentence.
    """
    cause = cause_of(error)
    if isinstance(cause, UserError):
        return cause
    return quoted_refusal(str(error)) if cause is error else None


def quoted_refusal(text: str) -> UserError | None:
    """The user's mistake in a text that quotes the traceback of another process."""
    found = _QUOTED.findall(text)
    return UserError(found[-1].strip()) if found else None


def first_line(error: BaseException) -> str:
    """What an error says, or the one that caused it in another process, without what Ray and Arrow print around it."""
    return str(refusal(error) or cause_of(error)).strip().partition("\n")[0]


def death(error: BaseException) -> str:
    """What ended the process of an actor: the exception of its constructor, or Ray's report without its guesses."""
    lines = [line.strip() for line in str(cause_of(error)).splitlines()]
    lines = [line for line in lines if line and not line.startswith("The actor never ran")]
    return lines[-1].partition(" Some common causes")[0] if lines else type(error).__name__
