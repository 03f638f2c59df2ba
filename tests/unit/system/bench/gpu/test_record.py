"""What a part has found is on the disk with every finding, however the part ends."""

import pytest

from services.base.errors import UserError
from system.bench.gpu.parts import GRACE_S
from system.bench.gpu.record import Check, Findings, Record, State


@pytest.fixture
def record(tmp_path) -> Record:
    return Record(tmp_path / "part.json", Findings("a card", False, "0.1"), "cpu", bound_s=60)


def test_every_finding_is_on_the_disk_at_once(record):
    assert Findings.load(record.path).state is State.RUNNING
    record.row("Speed", model="one", rate=1.5)
    record.row("Speed", model="two", rate=None)
    record.check("numbers", True, "equal")
    found = Findings.load(record.path)
    assert found.tables[0].rows == [{"model": "one", "rate": 1.5}, {"model": "two", "rate": None}]
    assert found.checks == [Check("numbers", True, "equal")]
    assert found.state is State.RUNNING


def test_a_part_passes_if_every_check_does(record):
    with record.ending():
        record.check("one", True, "")
    assert Findings.load(record.path).state is State.PASSED
    with record.ending():
        record.check("two", False, "0.1 apart")
    assert Findings.load(record.path).state is State.FAILED


def test_an_error_is_kept_with_its_traceback_and_what_was_found_before(record):
    with record.ending():
        record.row("Speed", model="one")
        raise RuntimeError("CUDA error: an illegal memory access")
    found = Findings.load(record.path)
    assert found.state is State.FAILED
    assert found.tables[0].rows == [{"model": "one"}]
    assert found.traceback.startswith("Traceback")
    assert found.traceback.endswith("RuntimeError: CUDA error: an illegal memory access\n")


def test_a_row_that_fails_is_a_failed_check_and_the_next_row_follows(record, capsys):
    with record.ending():
        for model in ("one", "two"):
            with record.attempt(model):
                if model == "one":
                    raise RuntimeError("CUBLAS_STATUS_ALLOC_FAILED\nmore")
                record.row("Speed", model=model)
    found = Findings.load(record.path)
    assert found.state is State.FAILED
    assert found.checks == [Check("one", False, "RuntimeError: CUBLAS_STATUS_ALLOC_FAILED")]
    assert found.tables[0].rows == [{"model": "two"}]
    assert "Traceback" in capsys.readouterr().err


def test_nothing_begins_after_the_bound_and_the_findings_say_so(record, tmp_path):
    assert record.has_time("the first row")
    late = Record(tmp_path / "late.json", Findings("a card", False, "0.1"), "cpu", bound_s=0)
    assert not late.has_time("the last row")
    assert Findings.load(late.path).notes == ["The last row was left out: the part had used its 0 seconds."]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"state": "passed"}'])
def test_a_file_that_is_no_result_is_refused(tmp_path, text):
    (tmp_path / "part.json").write_text(text)
    with pytest.raises(UserError, match="not a result of `tempflow bench gpu`"):
        Findings.load(tmp_path / "part.json")


def test_the_time_that_is_left_ends_with_the_grace(tmp_path):
    late = Record(tmp_path / "late.json", Findings("a card", False, "0.1"), "cpu", bound_s=0)
    late.started -= 40
    assert 0 < late.left_s <= GRACE_S - 40
