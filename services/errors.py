"""The one exception that means "the user can mend this"."""


class UserError(Exception):
    """A mistake in what the user gave: one sentence that names the thing and the mend.

    The command line prints it without a traceback and exits with code 2.
    """


def first_line(error: BaseException) -> str:
    """What an error says, or the one that caused it in another process, without what Ray and Arrow print around it."""
    return str(getattr(error, "cause", None) or error).strip().partition("\n")[0]
