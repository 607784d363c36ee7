"""Batch normalisation whose statistics are those of the whole batch, however many processes share it.

torch has this for CUDA (``nn.SyncBatchNorm``); this one also runs where processes talk through gloo. The mean and then
the squared deviations from it are summed over the processes, forward and backward, so a layer computes what it computes
on the whole batch in one process, up to rounding (Ioffe and Szegedy 2015, algorithm 1).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class SyncedBatchNorm(nn.Module):
    """Takes over parameters, buffers and their names from a batch norm layer."""

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(self, layer: _BatchNorm) -> None:
        super().__init__()
        self.eps, self.momentum = layer.eps, layer.momentum
        for name, parameter in layer._parameters.items():
            self.register_parameter(name, parameter)
        for name, buffer in layer._buffers.items():
            self.register_buffer(name, buffer)

    def forward(self, inputs: Tensor) -> Tensor:
        """Features [n, channels, ...] of this process's part of the batch."""
        if not self.training and self.running_mean is not None:
            return F.batch_norm(
                inputs, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        x = inputs.to(torch.promote_types(inputs.dtype, torch.float32))  # as batch_norm does under autocast
        over = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1, *([1] * (x.dim() - 2))]
        samples = x.new_tensor([x.numel() / x.shape[1]])
        total = sum_over_processes(torch.cat([x.sum(over), samples]))
        count = total[-1].detach()
        if count <= 1:
            raise ValueError(f"batch norm needs more than one value per channel in training, got {tuple(inputs.shape)}")
        mean = total[:-1] / count
        centred = x - mean.view(shape)
        variance = sum_over_processes(centred.square().sum(over)) / count
        if self.training and self.running_mean is not None:
            self._remember(mean.detach(), variance.detach() * count / (count - 1))
        scaled = centred * (variance + self.eps).rsqrt().view(shape)
        if self.weight is not None and self.bias is not None:
            scaled = scaled * self.weight.view(shape) + self.bias.view(shape)
        return scaled.to(inputs.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


class _Sum(torch.autograd.Function):
    """The sum over all processes; so is its gradient, because each process's part of it reaches every process."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def sum_over_processes(value: Tensor) -> Tensor:
    """``value`` summed over the processes of the default group, differentiable. All of them must call it."""
    total: Tensor = _Sum.apply(value)
    return total


def share_batch_norm(model: nn.Module) -> nn.Module:
    """Replace the batch norm layers of ``model`` in place by ones that see the whole batch; returns ``model``.

    Names, parameters and buffers stay. ``ValueError`` for kinds of batch norm that do more than normalise.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, _BatchNorm) and type(layer) not in PLAIN:
            raise ValueError(
                f"a model trained by several processes must have plain batch norm layers, got {type(layer).__name__} "
                f"at {name}; set train_workers: 1 for it"
            )
    if next(model.parameters()).is_cuda:
        synced: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return synced
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                setattr(module, name, SyncedBatchNorm(child))
    return model
