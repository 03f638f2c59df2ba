"""What is left of an error in a log line."""

import pytest
import ray.exceptions

from services.base.errors import UserError, death, first_line, has_credentials, quoted_refusal, redacted, refusal


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError(2, "No such file or directory", "/proc/x"), "No such file or directory: '/proc/x'"),
        (RuntimeError("\n  it broke\nand more"), "it broke"),
        (ValueError(), ""),
        (
            ray.exceptions.RayTaskError("save", "Traceback …", OSError(28, "No space left on device")),
            "No space left on device",
        ),
    ],
)
def test_the_first_line_is_that_of_the_cause(error, line):
    assert first_line(error) == line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("s3://me:hush@bucket/x", "s3://…@bucket/x"),
        ("checkpoint.foldr=s3://KEY:SEC/RET@b", "checkpoint.foldr=s3://…@b"),
        ("http://hush@pool:8000", "http://…@pool:8000"),
        ("s3://KEY:it'sSECRET@b", "s3://…@b"),
        ("s3://KEY:7/SECRET@b", "s3://…@b"),
        ("s3://KEY:SE@CRET@b", "s3://…@b"),
        ("a http://me:x@one and https://y:z@two", "a http://…@one and https://…@two"),
        ("s3://bucket/a@b", None),
        ("http://pool:8000/v1@2", None),
        ("someone@example.org", None),
        ("/runs/a@b", None),
    ],
)
def test_credentials_in_a_url_are_known_and_never_repeated(text, said):
    assert has_credentials(text) == (said is not None)
    assert redacted(text) == str(UserError(text)) == (said or text)


TRACEBACK = """The actor died because of an error raised in its creation task, ray::Worker.__init__()
  File "policy.py", line 3, in __init__
services.base.errors.UserError: policy.adapter: no such folder"""


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (UserError("a sentence"), "a sentence"),
        (ray.exceptions.RayTaskError("f", "Traceback …", UserError("a sentence")), "a sentence"),
        (RuntimeError(TRACEBACK), "policy.adapter: no such folder"),
        (RuntimeError("a UserError: of somebody else"), None),
        (ray.exceptions.RayTaskError("f", TRACEBACK, ValueError("a bug")), None),
    ],
)
def test_a_refusal_is_found_wherever_it_was_raised(error, sentence):
    found = refusal(error)
    assert (str(found) if found else None) == sentence
    if sentence:
        assert first_line(error) == sentence


def test_the_last_quoted_refusal_counts():
    assert quoted_refusal("no traceback at all") is None
    assert str(quoted_refusal(TRACEBACK + "\n\nservices.base.errors.UserError: another\n")) == "another"


def test_a_death_is_what_ray_reports_without_its_guesses():
    report = (
        "The actor died unexpectedly.\n\tpid: 3\nThe actor is dead because its process has died. Some common causes"
    )
    assert death(RuntimeError(report)) == "The actor is dead because its process has died."
    assert death(RuntimeError(f"{report} include: x\nThe actor never ran - it was cancelled.")) == (
        "The actor is dead because its process has died."
    )
    assert death(ValueError()) == "ValueError"
