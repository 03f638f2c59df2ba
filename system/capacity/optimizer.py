"""What an optimizer step costs on a GPU: it computes little, and reads and writes all that is trained."""

from actors.policy.families.family import DTYPES
from system.capacity.memory import ADAM_MOMENTS, FP32_BYTES, own_parameters, shards_trained
from system.recipe.model import RunConfig

CLIP_READS_AND_WRITES = 3
"""Of each gradient, by `clip_grad_norm_`: read for the norm, read and written where it is scaled."""
ADAMW_READS_AND_WRITES = 20
"""fp32 numbers for each parameter, by PyTorch's AdamW as it runs on CUDA, an operator at a time over all tensors
(`torch.optim.adamw._multi_tensor_adamw`): decay of the weight 2, first moment 3, second moment 2 and 3, its root 2,
divided 2, epsilon 2, the step 4."""
AVERAGE_READS_AND_WRITES = 3
"""By `lerp_`: the average is read and written, the weight is read."""


def copied_bytes(config: RunConfig) -> float:
    """Bytes that one optimizer step of a rank copies between its GPU and the host: offloaded moments, there and back.

    Raises:
        UserError: the shapes of the policy's model are not known.
    """
    if config.learner.optimizer == "adamw":
        return 0.0
    return 2.0 * ADAM_MOMENTS * FP32_BYTES * own_parameters(config)


def step_bytes_moved(config: RunConfig) -> float:
    """Bytes that one optimizer step of a rank reads and writes in its GPU's memory.

    Gradients are clipped, AdamW steps in fp32, weight sets follow, and the compute dtype's weights are rounded from the
    fp32 ones. The sum of the gradients over the ranks is a transfer, which is not counted.

    Raises:
        UserError: the shapes of the policy's model are not known.
    """
    policy, learner = config.policy, config.learner
    averages = sum(
        1 / one.every for one in config.objective.weight_sets(learner.ema) if one.follows == "optimizer_step"
    )
    moved = FP32_BYTES * (CLIP_READS_AND_WRITES + ADAMW_READS_AND_WRITES + AVERAGE_READS_AND_WRITES * averages)
    if policy.dtype != "fp32" and not shards_trained(config):
        moved += FP32_BYTES + DTYPES[policy.dtype].itemsize
    return moved * own_parameters(config)
