"""The trained weights in a checkpoint, read without their base model and without a learner."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from actors.learner.averages import COUNT
from actors.learner.parts import whole
from actors.learner.weight_sets import used_for
from actors.policy.trained import TRAINED_SET
from services.base.errors import UserError
from services.base.storage import Folder
from system.export.choices import Chosen
from system.recipe.model import RunConfig
from system.run.checkpoint import Checkpoint, Checkpoints
from system.run.files import RunFiles
from system.run.recorded import read_recorded


@dataclass(frozen=True)
class Trained:
    """Trained weights of one checkpoint."""

    config: RunConfig
    step: int
    heldout: float | None
    """The held-out reward of the weights that were evaluated at this step; None if none were."""
    weight_set: str
    """`trained`, or the name of a moving average."""
    evaluated: bool
    """Whether this weight set is the one that evaluations use."""
    checkpoint: Folder

    def read(self) -> dict[str, Tensor]:
        """Read the weights, by the policy's names, in fp32.

        Raises:
            UserError: they are not finite.
        """
        tensors = {key: tensor for key, tensor in whole(self.weight_set, self.checkpoint).items() if key != COUNT}
        if broken := [key for key, tensor in tensors.items() if not bool(tensor.isfinite().all())]:
            said = f"the weights of step {self.step} hold NaN or infinity in {broken[0]}"
            raise UserError(f"{said}; give another --step")
        return tensors


def find_weights(run: Path, step: int | Chosen, average: bool) -> Trained:
    """Find the trained weights of a kept checkpoint. They are read by `Trained.read`.

    Args:
        average: whether to take the moving average that evaluations use, if there is one.

    Raises:
        UserError: `run` is no run, or has no such checkpoint.
    """
    if not run.is_dir():
        raise UserError(f"there is no folder `{run}`; give the folder of a run, such as runs/NAME")
    folder = RunFiles(run)
    found = _find(folder.checkpoints(folder.read_config().checkpoint), step)
    if found.state.step == 0:
        raise UserError(f"the checkpoint of step 0 in `{run}` has no weights: nothing is trained yet; train further")
    config = read_recorded(found.recipe, f"the checkpoint `{found.folder}`").config
    evaluated = used_for("evaluation", config.objective.weight_sets(config.learner.ema))
    name = evaluated.name if evaluated and average else TRAINED_SET
    is_evaluated = name == (evaluated.name if evaluated else TRAINED_SET)
    return Trained(config, found.state.step, found.state.heldout, name, is_evaluated, found.folder)


def _find(checkpoints: Checkpoints, step: int | Chosen) -> Checkpoint:
    """The checkpoint that is asked for.

    Raises:
        UserError: it is not kept. The message names those that are.
    """
    if step is Chosen.BEST:
        found = checkpoints.best()
        missing = "no checkpoint has a held-out reward, which data.heldout asks for; give --step last or a step"
    elif step is Chosen.LAST:
        found, missing = checkpoints.latest(), "there is no checkpoint"
    else:
        found, missing = checkpoints.at(int(step)), f"there is no intact checkpoint of step {step}"
    if found is None:
        kept = ", ".join(map(str, checkpoints.steps())) or "none"
        raise UserError(f"{missing}; the steps kept in `{checkpoints.folder}` are {kept}")
    return found
