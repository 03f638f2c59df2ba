"""The forward of Qwen-Image 2.1's transformer with a fixed layout: text padded to one length, then the image.

diffusers' forward finds the layout in the values of a mask, so it waits for the GPU and cannot run without data. All
rows share one layout there, so an image is placed behind the longest text of its batch. Here each image is placed
behind its own text, as if its row were alone, and nothing depends on values. The modules are the model's own.

Shape legend: N rows, S text tokens, L image tokens, J = S + L, C channels, W width of the model, H heads, D numbers of
a head.
"""

from functools import partial
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor

Grid = tuple[int, int]
"""Rows and columns of image tokens."""


class BlockCausalAttention:
    """An attention processor for `[text, image]`. A text token sees the text up to itself; the image sees its text and
    all of itself. Padding follows the text, so no text token sees it.
    """

    _attention_backend: Any = None
    _parallel_config: Any = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        rotary_emb: tuple[Tensor, Tensor],
        segments: list[tuple[int, int, bool]],
        key_valid: Tensor,
        **_: Any,
    ) -> Tensor:
        """The attention of each token, (N, J, W).

        Args:
            hidden_states: (N, J, W).
            rotary_emb: cos and sin of each position, (N, J, 1, D/2) each.
            segments: the text alone, as (0, S, True).
            key_valid: (N, J), False for padding.
        """
        text = segments[0][1]
        query, key, value = (
            project(hidden_states).unflatten(-1, (-1, attn.inner_dim // attn.heads))
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        query, key = rotated(attn.norm_q(query), *rotary_emb), rotated(attn.norm_k(key), *rotary_emb)
        of_text = dispatch_attention_fn(
            query[:, :text], key[:, :text], value[:, :text], is_causal=True, backend=self._attention_backend
        )
        of_image = dispatch_attention_fn(
            query[:, text:], key, value, attn_mask=key_valid[:, None, None], backend=self._attention_backend
        )
        return attn.to_out[0](torch.cat([of_text, of_image], 1).flatten(2))


def rotated(x_NJHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each pair of neighbouring numbers as a complex one, turned by the angle of its position; in fp32."""
    real, imaginary = x_NJHD.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], -1)
    return turned.flatten(-2).to(x_NJHD.dtype)


def rotary_embedding(rope: Any, text_tokens: int, length_N: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Cos and sin of the angles of each token, (N, J, 1, D/2) each.

    The n-th text token is at n on the axes frame, row and column. The image is at the frame that follows its text, and
    its rows and columns are counted from its centre.

    Args:
        rope: the model's `pos_embed`, for its settings.
        length_N: text tokens of each row that are no padding.
    """
    arange = partial(torch.arange, device=length_N.device, dtype=torch.float32)
    rows, columns = (arange(-(size - size // 2), size // 2) for size in grid)
    text_S = arange(text_tokens).expand(len(length_N), -1)
    image_NL = (
        length_N[:, None].expand(-1, grid[0] * grid[1]),
        rows[:, None].expand(grid).flatten().expand(len(length_N), -1),
        columns.expand(grid).flatten().expand(len(length_N), -1),
    )
    angles = [
        torch.cat([text_S, at_NL], 1)[..., None] * (1 / rope.theta ** (arange(0, width, 2) / width))
        for at_NL, width in zip(image_NL, rope.axes_dim, strict=True)
    ]
    angle_NJ1D = torch.cat(angles, -1)[:, :, None]
    return angle_NJ1D.cos(), angle_NJ1D.sin()


def block_causal_forward(
    model: Any, x_NLC: Tensor, sigma_N: Tensor, text_NSW: Tensor, mask_NS: Tensor, grid: Grid
) -> Tensor:
    """The velocity of an image, (N, L, C) in the dtype of `x_NLC`.

    Args:
        model: a `QwenImage21Transformer2DModel` whose attention processors are `BlockCausalAttention`.
        mask_NS: 1 for text, 0 for the padding behind it.
    """
    text = text_NSW.shape[1]
    joint_NJW = torch.cat([model.txt_in(text_NSW), model.img_in(x_NLC)], 1)
    is_image_J = torch.arange(joint_NJW.shape[1], device=x_NLC.device) >= text
    valid_NJ = torch.cat([mask_NS.bool(), mask_NS.new_ones(x_NLC.shape[:2], dtype=torch.bool)], 1)
    rotary = rotary_embedding(model.pos_embed, text, mask_NS.float().sum(1), grid)
    # Rounded as the pipeline does. The last row is t = 0, which modulates the text at every step.
    time = torch.cat([(1000 * sigma_N).to(x_NLC.dtype) / 1000, x_NLC.new_zeros(1)])
    embedded = model.time_text_embed(time, x_NLC)
    rest = (model.modulation(embedded), rotary, None, is_image_J, None, None, None, [(0, text, True)], valid_NJ)
    for block in model.transformer_blocks:
        if torch.is_grad_enabled() and model.gradient_checkpointing:
            joint_NJW = model._gradient_checkpointing_func(block, joint_NJW, *rest)
        else:
            joint_NJW = block(joint_NJW, *rest)
    return model.proj_out(model.norm_out(joint_NJW[:, text:], embedded[:-1]))
