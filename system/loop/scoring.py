"""Scores images as soon as they are generated, in training and in evaluation."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from actors.reward.scores import Scores
from actors.rollout.results import Generated, Sampled
from services.base.futures import cancel
from services.base.logs import at
from services.scoring.row import Row
from system.loop.roles import Rewards

Job = TypeVar("Job", Generated, Sampled)


def scored(
    generated: Future[Job],
    rewards: Rewards,
    prompts: Sequence[str],
    names: Sequence[str],
    before_release: Callable[[Job], None] | None = None,
    rows: Sequence[Row] = (),
    group: int | None = None,
    **place: int,
) -> Future[tuple[Job, Scores]]:
    """Score a job's images once they exist. Release them once they are scored or scoring has failed.

    Args:
        prompts: one for each image.
        names: the scorers.
        before_release: called with the scored job while its images still exist.
        rows: one for each prompt, or none if no scorer reads them.
        group: the number of images in a group; images of a group are next to each other. If not given, all images are
            one group.
        place: says in the log where the job belongs, such as step and task.

    Returns:
        The job and its scores. The future has the error of generating or scoring, and is cancelled if one of them is.
    """
    outcome: Future[tuple[Job, Scores]] = Future()

    def score(generated: Future[Job]) -> None:
        if _failed(generated, outcome):
            return
        job = generated.result()
        try:
            with at(**place):
                scoring = rewards.score(job.images.reference, prompts, names, job.finite_M, rows, group)
        except Exception as error:
            job.images.release()
            outcome.set_exception(error)
        else:
            scoring.add_done_callback(partial(_finish, outcome, job, before_release))

    generated.add_done_callback(score)
    return outcome


def _finish(
    outcome: Future[tuple[Job, Scores]], job: Job, before_release: Callable[[Job], None] | None, scoring: Future[Scores]
) -> None:
    error: BaseException | None = None
    try:
        if before_release is not None and not scoring.cancelled() and scoring.exception() is None:
            before_release(job)
    except (Exception, SystemExit) as raised:  # Ray raises SystemExit when the driver's node is lost.
        error = raised
    finally:
        job.images.release()
    if error is not None:
        outcome.set_exception(error)
    elif not _failed(scoring, outcome):
        outcome.set_result((job, scoring.result()))


def _failed(part: Future[Any], outcome: Future[Any]) -> bool:
    """Whether a part was cancelled or raised. If so, the outcome is cancelled or raises the same error."""
    if part.cancelled():
        cancel(outcome)
        return True
    if (error := part.exception()) is not None:
        outcome.set_exception(error)
        return True
    return False
