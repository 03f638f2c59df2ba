"""Fingerprints: equal for the same content, different for any other."""

import hashlib
from pathlib import Path

import pytest

from services.base import fingerprint as module
from services.base.fingerprint import BLOCK_BYTES, BLOCKS, fingerprint, fingerprint_of


def test_a_file_is_its_content(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"content")
    assert fingerprint(file) == hashlib.sha256(b"content").hexdigest()


def test_a_folder_is_the_names_and_contents_of_its_files_but_not_what_tools_note_beside_them(tmp_path):
    def model(name: str, **files: str) -> str:
        for file, content in {"config": "{}", "part/weights": "1", **files}.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return fingerprint(tmp_path / name)

    one = model("one")
    assert model("two") == one
    assert model("noted", **{".cache/when": "now", ".gitattributes": "x"}) == one
    others = [model("content", config="[]"), model("part", **{"part/weights": "2"}), model("more", more="")]
    (tmp_path / "two" / "config").rename(tmp_path / "two" / "configuration")
    assert len({one, *others, fingerprint(tmp_path / "two")}) == 5
    (tmp_path / "linked").symlink_to(tmp_path / "one")
    assert fingerprint(tmp_path / "linked") == one


def test_of_a_large_file_evenly_spaced_blocks_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(module, "BLOCKS", 4)
    monkeypatch.setattr(module, "BLOCK_BYTES", 10)
    file, content = tmp_path / "large", bytearray(1001)
    file.write_bytes(content)
    seen = {fingerprint(file)}
    for place in (0, 330, 669, 1000):
        changed = content.copy()
        changed[place] = 1
        file.write_bytes(changed)
        seen.add(fingerprint(file))
    file.write_bytes(bytes(1002))
    seen.add(fingerprint(file))
    assert len(seen) == 6
    content[100] = 1
    file.write_bytes(content)
    assert fingerprint(file) in seen


def bytes_read() -> int:
    """Bytes that this process has read so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_of_a_model_of_24_gb_less_than_a_hundredth_is_read(tmp_path):
    for shard in range(3):
        with (tmp_path / f"shard{shard}").open("wb") as file:
            file.truncate(8 * 2**30)
    before = bytes_read()
    fingerprint(tmp_path)
    assert 3 * BLOCKS * BLOCK_BYTES <= bytes_read() - before < 0.01 * 24 * 2**30


def test_a_hub_id_is_the_commit_that_the_cache_knows(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert fingerprint_of("owner/model") is None
    branch = tmp_path / "models--owner--model" / "refs" / "main"
    branch.parent.mkdir(parents=True)
    branch.write_text("abc123")
    assert fingerprint_of("owner/model") == "abc123"


@pytest.mark.parametrize("text", ["cpu", "a text\nof two lines", "x" * 5000, "\0", "~", "http://host/path?x=1"])
def test_any_text_may_be_asked_for(text, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "nowhere"))
    assert fingerprint_of(text) is None


def test_a_text_that_only_begins_like_a_home_is_no_file():
    assert fingerprint_of("~ about nothing") is None
