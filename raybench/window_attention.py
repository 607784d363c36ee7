"""Attention in shifted windows (Liu et al. 2021), with torchvision's parameters and every layer called as a module."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@functools.cache
def window_attention() -> type[nn.Module]:
    """torchvision's shifted-window attention with its two dense layers called as modules.

    torchvision multiplies by their weights directly, so that no hook sees them: passes would not be counted, nor
    per-sample gradients found. The class is made here since the import is slow.
    """
    from torchvision.models.swin_transformer import ShiftedWindowAttention

    class WindowAttention(ShiftedWindowAttention):  # type: ignore[misc]
        """See ``window_attention``."""

        def forward(self, x: Tensor) -> Tensor:
            """[n, h, w, d] to the same shape (Liu et al. 2021, section 3.2)."""
            n, height, width, size = x.shape
            window = self.window_size
            x = F.pad(x, (0, 0, 0, -width % window[1], 0, -height % window[0]))
            padded = x.shape[1:3]
            # A window that covers a whole side has nothing to be shifted to.
            shift = [0 if w >= side else s for w, side, s in zip(window, padded, self.shift_size, strict=True)]
            if any(shift):
                x = torch.roll(x, (-shift[0], -shift[1]), (1, 2))
            windows = split(x, window)  # [n, windows, window area, d]
            count, area = windows.shape[1:3]
            heads = (n, count, area, 3, self.num_heads, size // self.num_heads)
            q, k, v = self.qkv(windows).view(heads).permute(3, 0, 1, 4, 2, 5).unbind(0)
            scores = q @ k.transpose(-2, -1) * (size // self.num_heads) ** -0.5
            scores = scores + self.get_relative_position_bias()
            if any(shift):
                scores = scores + apart(padded, window, shift, x)[None, :, None]
            mixed = (scores.softmax(-1) @ v).transpose(2, 3).reshape(n, count, area, size)
            out = joined(self.proj(mixed), padded, window)
            if any(shift):
                out = torch.roll(out, (shift[0], shift[1]), (1, 2))
            return out[:, :height, :width].contiguous()

    return WindowAttention


def split(x: Tensor, window: list[int]) -> Tensor:
    """[n, h, w, d] to windows [n, windows, window area, d]."""
    n, height, width, size = x.shape
    x = x.view(n, height // window[0], window[0], width // window[1], window[1], size)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(n, -1, window[0] * window[1], size)


def joined(windows: Tensor, sides: torch.Size, window: list[int]) -> Tensor:
    """The inverse of ``split``, for images of ``sides``."""
    n, _, _, size = windows.shape
    x = windows.view(n, sides[0] // window[0], sides[1] // window[1], window[0], window[1], size)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(n, *sides, size)


def apart(sides: torch.Size, window: list[int], shift: list[int], like: Tensor) -> Tensor:
    """-100 [windows, area, area] between pixels that only the cyclic shift brought into one window, else 0."""
    rows, columns = (
        (torch.arange(side, device=like.device) >= side - w).long()
        + (torch.arange(side, device=like.device) >= side - s).long() * (s > 0)
        for side, w, s in zip(sides, window, shift, strict=True)
    )
    region = split((3 * rows[:, None] + columns)[None, :, :, None], window)[0, :, :, 0]
    other = region[:, None, :] != region[:, :, None]
    return torch.zeros(other.shape, dtype=like.dtype, device=like.device).masked_fill(other, -100.0)
