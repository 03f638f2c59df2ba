"""How deterministic images are sampled, for evaluation and `tempflow sample`."""

from dataclasses import dataclass

from actors.policy.settings import PolicySettings


@dataclass(frozen=True)
class Sampling:
    """How deterministic images are sampled. It may differ from the sampling that the policy is trained with."""

    height: int
    """In pixels."""
    width: int
    """In pixels."""
    num_steps: int
    """T, the number of sampling steps."""
    guidance: float
    negative_prompt: str | None = None
    """The negative prompt of classifier-free guidance; None for the default of the model's pipeline."""
    adapter_scale: float = 1.0
    """The number by which the adapter's part of each weight is multiplied."""
    base_after: float = 1.0
    """The share of the sampling steps after which the base model takes over, which was never trained. 0 is the base
    alone, 1 is the policy alone. Between them is the hybrid sampling of MixGRPO (arXiv 2507.21802)."""

    @property
    def policy_steps(self) -> int:
        """The number of steps that the policy takes. The base takes the others."""
        return round(self.base_after * self.num_steps)

    def of(self, policy: PolicySettings) -> PolicySettings:
        """The settings of a policy that samples like this."""
        changes = {"height": self.height, "width": self.width, "num_steps": self.num_steps, "guidance": self.guidance}
        return policy.model_copy(update=changes)


def image_bytes(size: Sampling | PolicySettings) -> int:
    """Bytes of one image of this height and width as it is scored: uint8 RGB."""
    return size.height * size.width * 3
