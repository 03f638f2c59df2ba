"""What the wait for a reward pool says while Serve starts it, against statuses as Serve (2.60) reports them."""

import pytest
from ray import serve
from ray.serve.schema import (
    ApplicationStatus,
    ApplicationStatusOverview,
    DeploymentStatus,
    DeploymentStatusOverview,
    ServeStatus,
)

from services.base.errors import UserError
from system.launch.pool_start import PoolStart

RETRYING = """A replica failed to start with exception. Retrying 2 more time(s). Error:
RuntimeError: Traceback (most recent call last):
  File "deployment.py", line 62, in __init__
    self.scorer: Scorer = load_scorer(settings)
{error}
"""


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
