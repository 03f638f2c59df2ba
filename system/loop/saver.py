"""The checkpoints of a training loop: begun after a step, written during the next steps, sealed once they are whole."""

import logging
from pathlib import Path

from actors.lost import Lost
from services.base.errors import UserError, first_line
from services.base.storage import sync_files
from system.loop.roles import Learners
from system.run.checkpoint import Checkpoint, Damaged, RunState
from system.run.folder import RunFolder
from system.run.opening import newest_checkpoint

log = logging.getLogger(__name__)


class Saver:
    """Begins and seals checkpoints. If one cannot be written, the log says so and the one before it stays."""

    def __init__(self, run: RunFolder, learners: Learners) -> None:
        self.run, self.learners = run, learners
        self.checkpoints = run.checkpoints(run.recorded.config.checkpoint)
        self.sealed_step: int | None = None
        """The step of the newest checkpoint; None if there is none yet."""
        self._writing: RunState | None = None
        """The state whose files are being written; None if no checkpoint is."""

    def claim(self) -> None:
        """Make this driver the only one that writes checkpoints of the run.

        Raises:
            UserError: they cannot be written.
        """
        try:
            self.checkpoints.claim()
        except OSError as error:
            raise self._unwritable(error) from error

    def newest(self) -> Checkpoint | None:
        """The checkpoint that the run continues from; None if the run has recorded nothing yet.

        Raises:
            UserError: it is missing or is another run's, or another driver has taken over.
        """
        self._writing = None
        found = newest_checkpoint(self.run, self.run.recorded, self.checkpoints)
        if found is not None:
            self.checkpoints.check_claim()
            self.sealed_step = found.state.step
        return found

    def first(self, state: RunState) -> None:
        """Seal the checkpoint of step 0, unless the run has one. It has no weights: they follow from the recipe.

        It is sealed before anything is recorded, so that a run with records and no checkpoint has lost its checkpoints.

        Raises:
            UserError: it cannot be written.
        """
        if self.sealed_step is not None:
            return
        try:
            self.checkpoints.begin(state.step)
            self.checkpoints.commit(state, {}, self.run.recipe)
        except OSError as error:
            raise self._unwritable(error) from error
        self.sealed_step = state.step

    def begin(self, state: RunState) -> None:
        """Begin to write the state of the last whole step, unless it is already written or being written."""
        if state.step in (self.sealed_step, self._writing.step if self._writing else None):
            return
        self.seal(wait=True)
        try:
            self.learners.save(self.checkpoints.begin(state.step))
            self._writing = state
        except OSError as error:
            log.warning("no checkpoint of step %d: %s", state.step, first_line(error))
        self._save_model(self.run.trained)
        if state.is_best:
            self._save_model(self.run.best)

    def evaluated(self, state: RunState) -> None:
        """Record in the newest checkpoint the held-out score of its policy, which was not known when it was sealed."""
        if state.is_best:
            self._save_model(self.run.best)
        try:
            self.checkpoints.amend(state)
        except (OSError, Damaged) as error:
            log.warning("the checkpoint of step %d lacks its held-out score: %s", state.step, first_line(error))

    def seal(self, wait: bool = False) -> None:
        """Seal the checkpoint that is being written, if all its files are written.

        A run can continue from a sealed checkpoint only.

        Args:
            wait: wait for the files.
        """
        if self._writing is None:
            return
        try:
            digests = self.learners.saved(wait)
            if digests is None:
                return
            self.checkpoints.commit(self._writing, digests, self.run.recipe)
            self.sealed_step = self._writing.step
        except OSError as error:
            log.warning("no checkpoint of step %d: %s", self._writing.step, first_line(error))
        self._writing = None

    def last(self, state: RunState) -> None:
        """Write and seal the last checkpoint of a run.

        Raises:
            UserError: it cannot be written.
        """
        self.begin(state)
        self.seal(wait=True)
        if self.sealed_step != state.step:
            raise UserError(
                f"the checkpoint of step {state.step} cannot be written to {self.checkpoints.folder} "
                f"(logs/driver.log says why); make room there and continue with --resume from step {self.sealed_step}"
            )
        if not self.run.trained.exists():
            self._save_model(self.run.trained)

    def stopped(self, state: RunState) -> None:
        """Write the checkpoint of a stopped run, unless it has recorded nothing yet.

        If the learner is lost as well, the checkpoint before stays the last one.
        """
        if not self.run.begun:
            return
        try:
            self.last(state)
        except Lost as lost:
            log.warning("no checkpoint of step %d: %s", state.step, lost)

    def _save_model(self, folder: Path) -> None:
        """Write the evaluated weights in diffusers' layout, before the checkpoint of their step is sealed."""
        self.learners.save_model(str(folder))
        if folder.is_dir():  # A learner on another node may have a disk of its own.
            sync_files(folder)

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"no checkpoint can be written to {self.checkpoints.folder} ({first_line(error)}); "
            "make room or mount it, or set checkpoint.folder to another place"
        )
