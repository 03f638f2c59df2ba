"""DiffusionNFT. Shape legend: N rows, Z latent dimensions."""

from torch import Tensor

from actors.learner.objectives.leaves import LeafObjective, LeafRows
from actors.learner.objectives.objective import Loss
from actors.methods.nft import NftSettings
from actors.policy.kernels import mean_square, per_row


class Nft(LeafObjective):
    """scale·[r·L(v⁺) + (1 − r)·L(v⁻)]/b + β·mean‖v − v_ref‖² on images of a slow copy of the policy.

    v⁺ = b·v + (1 − b)·v_slow and v⁻ = (1 + b)·v_slow − b·v are the velocities that should have made images of high and
    of low reward; r = clip(A/(2·clip) + ½, 0, 1) says how high. L(v±) = mean[(x̂₀ − x₀)² / c] with x̂₀ = x_t − t·v± and
    c = mean|x̂₀ − x₀|, held constant. The slow copy, which the paper calls the old policy, stands still during an
    update. There is no ratio, hence nothing is clipped.
    """

    settings: NftSettings

    def loss(self, micro: LeafRows, old: Tensor | None) -> Loss:
        settings, v_NZ = self.settings, self.predicted(micro)
        with self.compared():
            slow_NZ = self.predicted(micro)
        b = settings.beta
        share_N = (micro.advantage_N / (2 * settings.advantage_clip) + 0.5).clamp(0, 1)
        better_N = self._miss(micro, b * v_NZ + (1 - b) * slow_NZ)
        worse_N = self._miss(micro, (1 + b) * slow_NZ - b * v_NZ)
        loss_N = settings.scale * (share_N * better_N + (1 - share_N) * worse_N) / b
        return self.without_ratio(micro, v_NZ, loss_N[: micro.real])

    def _miss(self, micro: LeafRows, v_NZ: Tensor) -> Tensor:
        """L(v), (N,)."""
        difference_NZ = micro.x_NZ - per_row(micro.time_N, v_NZ) * v_NZ - micro.image_NZ
        scale_N = difference_NZ.detach().abs().flatten(1).mean(1).clamp_min(1e-5)
        return mean_square(difference_NZ) / scale_N
