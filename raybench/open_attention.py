"""torch's multi-head attention with its projections called as modules, so that hooks see them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

Result = tuple[Tensor, Tensor | None]


@contextlib.contextmanager
def opened_attention(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Inside, ``nn.MultiheadAttention`` in evaluation mode calls linear modules that hold its own parameters; they are
    what the context gives. Only self-attention without masks on [n, tokens, d] does; any other call is as it was."""
    found: list[nn.Module] = []
    changed = []
    for layer in model.modules():
        if type(layer) is nn.MultiheadAttention and "forward" not in layer.__dict__ and _usual(layer):
            qkv = _holding(layer.in_proj_weight, layer.in_proj_bias)
            out = _holding(layer.out_proj.weight, layer.out_proj.bias)
            layer.forward = _forward(layer, qkv, out)  # type: ignore[method-assign]
            found += [qkv, out]
            changed.append(layer)
    try:
        yield found
    finally:
        for layer in changed:
            del layer.forward


def _usual(layer: nn.MultiheadAttention) -> bool:
    return layer.batch_first and layer._qkv_same_embed_dim and layer.bias_k is None and not layer.add_zero_attn


def _holding(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = cast(nn.Parameter, weight)
    if bias is not None:
        linear.bias = cast(nn.Parameter, bias)
    return linear


def _forward(layer: nn.MultiheadAttention, qkv: nn.Linear, out: nn.Linear) -> Callable[..., Result]:
    original, heads = layer.forward, layer.num_heads

    def forward(query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Result:
        weights_too, average = options.get("need_weights", True), options.get("average_attn_weights", True)
        masked = args or any(options.get(name) is not None for name in ("key_padding_mask", "attn_mask"))
        if masked or query is not key or key is not value or query.ndim != 3 or layer.training:
            return original(query, key, value, *args, **options)
        n, tokens, size = query.shape
        q, k, v = qkv(query).view(n, tokens, 3, heads, size // heads).permute(2, 0, 3, 1, 4).unbind(0)
        shares = torch.softmax(q @ k.transpose(-2, -1) * (size // heads) ** -0.5, dim=-1)
        mixed = out((shares @ v).transpose(1, 2).reshape(n, tokens, size))
        return mixed, (shares.mean(1) if average else shares) if weights_too else None

    return forward
