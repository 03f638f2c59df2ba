"""Muon for weight matrices and kernels, AdamW for all other parameters. Muon learns more per step from few samples.

Muon: K. Jordan et al., 2024, https://kellerjordan.github.io/posts/muon. Updates are scaled to the size of AdamW's as in
arXiv 2502.16982, so that both share one learning rate. Embeddings, norms, biases and outputs use AdamW.
"""

from __future__ import annotations

import torch
from torch import nn

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
ADAM_ONLY = ("embed", "pos_", "logit_scale", "proj_out", "conv_out")


def orthogonalise(update_NRC: torch.Tensor) -> torch.Tensor:
    """Replace each of N matrices, (N, R, C), with approximately the nearest semi-orthogonal matrix."""
    a, b, c = NEWTON_SCHULZ
    tall = update_NRC.shape[1] > update_NRC.shape[2]
    x = update_NRC.mT if tall else update_NRC
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised updates. Matrices of one shape are processed together."""

    def __init__(self, params: list[nn.Parameter], lr: float, weight_decay: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[tuple[int, int], list[tuple[nn.Parameter, torch.Tensor]]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault((p.shape[0], p[0].numel()), []).append((p, p.grad))
            for (rows, columns), pairs in shapes.items():
                updates = []
                for p, grad in pairs:
                    average = self.state[p].setdefault("average", torch.zeros_like(p))
                    average.lerp_(grad, 1 - MOMENTUM)
                    updates.append(grad.lerp(average, MOMENTUM).reshape(rows, columns))
                scale = 0.2 * max(rows, columns) ** 0.5 * group["lr"]
                for (p, _), update in zip(pairs, orthogonalise(torch.stack(updates)), strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(scale * update.reshape(p.shape))


class Optimizer:
    """Both optimizers for a model. The learning rate warms up, and falls linearly over the last share `fall`."""

    def __init__(self, model: nn.Module, lr: float, steps: int, fall: float, warmup_steps: int = 50) -> None:
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, p in model.named_parameters():
            (matrices if p.ndim > 1 and not any(word in name for word in ADAM_ONLY) else others).append(p)
        self.parts = [Muon(matrices, lr), torch.optim.AdamW(others, lr, betas=(0.9, 0.99), weight_decay=0.0)]
        self.params = [*matrices, *others]
        self.lr, self.steps, self.fall, self.warmup_steps, self.done = lr, steps, fall, warmup_steps, 0

    def step(self, loss: torch.Tensor) -> None:
        """Run the backward, clip the gradient, and update."""
        for part in self.parts:
            part.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.params, 1.0)
        left = (self.steps - self.done) / self.steps
        rate = self.lr * min(1.0, (self.done + 1) / self.warmup_steps, left / self.fall if self.fall else 1.0)
        for part in self.parts:
            part.param_groups[0]["lr"] = rate
            part.step()
        self.done += 1
