"""What the wait for a reward pool says while Serve starts it, against statuses as Serve (2.60) reports them."""

import logging

import pytest
from ray import serve
from ray.serve.schema import (
    ApplicationStatus,
    ApplicationStatusOverview,
    DeploymentStatus,
    DeploymentStatusOverview,
    ServeStatus,
)

from services.base import patience
from services.base.errors import UserError
from system.launch.pool_start import PoolStart

RETRYING = """A replica failed to start with exception. Retrying 2 more time(s). Error:
RuntimeError: Traceback (most recent call last):
  File "deployment.py", line 62, in __init__
    self.scorer: Scorer = load_scorer(settings)
{error}
"""


SLOW = """Deployment 'scorer-mine' in application 'pool' has 1 replicas that have taken more than 30s to initialize.
This may be caused by a slow __init__ or reconfigure method."""


@pytest.fixture
def start(monkeypatch):
    """A pool that starts, with what Serve says of its one scorer."""

    def starting(message: str) -> PoolStart:
        overview = DeploymentStatusOverview(DeploymentStatus.UPDATING, "", {}, message)
        application = ApplicationStatusOverview(ApplicationStatus.DEPLOYING, "", 0.0, {"scorer-mine": overview})
        monkeypatch.setattr(serve, "status", lambda: ServeStatus(applications={"pool": application}))
        monkeypatch.setattr("ray.available_resources", dict)
        return PoolStart("pool", [])

    return starting


def test_a_refusal_ends_the_wait_at_the_first_failed_start(start):
    with pytest.raises(UserError) as refused:
        start(RETRYING.format(error="services.base.errors.UserError: no file `x`; set options.x")).wait(60)
    assert str(refused.value) == "no file `x`; set options.x"


def test_other_errors_are_one_line_while_serve_tries_again(start):
    with pytest.raises(UserError) as late:
        start(RETRYING.format(error="OSError: the disk is slow")).wait(0)
    said = str(late.value)
    assert said.startswith("the reward pool has not started (scorer-mine: A replica failed to start with exception.")
    assert "RuntimeError: OSError: the disk is slow) within ray.start_timeout_s" in said
    assert "Traceback" not in said
    assert "deployment.py" not in said


def test_a_replica_that_only_starts_says_so(start):
    with pytest.raises(UserError, match=r"^the reward pool has not started \(scorer-mine: UPDATING\) within"):
        start("").wait(0)


@pytest.mark.parametrize("message", ["", SLOW])
def test_a_start_that_is_only_slow_is_no_warning(start, caplog, monkeypatch, message):
    monkeypatch.setattr(patience, "TELL_AFTER_S", 0.0)
    with caplog.at_level(logging.INFO), pytest.raises(UserError):
        start(message).wait(1)
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_a_failed_start_is_warned_of_once(start, caplog):
    with pytest.raises(UserError):
        start(RETRYING.format(error="OSError: the disk is slow")).wait(1)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.message.startswith("scorer-mine has not started: A replica failed to start with exception. Retrying")
    assert record.message.endswith("OSError: the disk is slow")
