"""Tokens that are never arguments, and what an answer asks to wait for."""

import pytest

from services.base.errors import UserError
from services.http.session import read_token, retry_after_s


def test_a_token_is_the_line_in_its_file(tmp_path, monkeypatch):
    monkeypatch.setenv("TEMPFLOW_TOKEN", " other\n")
    (tmp_path / "token").write_bytes("\ufeffsecret-1\r\n".encode())
    assert read_token(str(tmp_path / "token")) == "secret-1"
    assert read_token(None) == "other"
    monkeypatch.setenv("TEMPFLOW_TOKEN", "a token of words")
    assert read_token(None) == "a token of words"
    monkeypatch.setenv("TEMPFLOW_TOKEN", " ")
    assert read_token(None) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("secret".encode("utf-16"), "is UTF-16; save it as UTF-8"),
        (b"secret\xff", "is not UTF-8"),
        (b"secret\nmore", "must be one line of ASCII"),
        ("secr\u00e9t".encode(), "must be one line of ASCII"),
        (b"secret\x1b", "must be one line of ASCII"),
        (b" \n", "no token in .*; write the token there, or set TEMPFLOW_TOKEN"),
    ],
)
def test_what_is_no_token_is_named_and_not_repeated(tmp_path, content, message):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match=message) as refused:
        read_token(str(tmp_path / "file"))
    assert "secr" not in str(refused.value)


def test_a_token_of_the_environment_must_fit_a_header_too(monkeypatch):
    monkeypatch.setenv("GENEVAL_TOKEN", "two\nlines")
    with pytest.raises(UserError, match="the token in GENEVAL_TOKEN must be one line"):
        read_token(None, "GENEVAL_TOKEN")


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("7", 7),
        ("0.25", 0.25),
        ("Fri, 01 Jan 1999 00:00:00 GMT", 0),
        ("Fri, 01 Jan 2100 00:00:00 GMT", 3600),
        ("soon", 0),
        ("-3", 0),
        ("1e300", 3600),
        ("nan", 0),
        ("inf", 0),
    ],
)
def test_retry_after(header, seconds):
    assert retry_after_s(header) == seconds
