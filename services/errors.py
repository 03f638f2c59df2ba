"""The one exception that means "the user can mend this"."""


class UserError(Exception):
    """A mistake in what the user gave: one sentence that names the thing and the mend.

    The command line prints it without a traceback and exits with code 2.
    """


def cause_of(error: BaseException) -> BaseException:
    """The error itself, or the one in another process that Ray has wrapped in it."""
    return getattr(error, "cause", None) or error


def first_line(error: BaseException) -> str:
    """What an error says, or the one that caused it in another process, without what Ray and Arrow print around it."""
    return str(cause_of(error)).strip().partition("\n")[0]
