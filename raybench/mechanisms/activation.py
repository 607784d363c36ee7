"""Other non-linearities in the place of a model's ReLUs, for a while, and back.

Two replacements, both with a scale beta > 0 per layer (the mean square of the layer's pre-activations, times kappa):

    bounded      f(x) = sqrt(beta) tanh(sqrt(beta) (C - 1/x)),  C = offset / sqrt(beta)
                 f'(x) = (beta - f(x)^2) / x^2 = beta / (x^2 cosh^2(sqrt(beta) (C - 1/x)))
    surrogate    ReLU forward, and backward the factor (relu(x)^2 - beta) / x^2, clipped: no derivative of anything

from "Unlearning Trained Model by Activation Function deriving FIM" (Choi, 12 April 2025), whose f' has the opposite
sign. f jumps by 2 sqrt(beta) at 0, where 1/x has no value; x is therefore kept ``epsilon`` away from 0, on its own
side (0 counts as positive), and the derivative is 0 in between. No replacement has parameters or buffers, so the
state dict of a model keeps its keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from raybench.mechanisms.laid_out import laid_out
from raybench.task import Facts

SMALLEST_SQUARE = 1e-24  # a layer whose pre-activations are all zero still gets a scale


def _away_from_zero(x: Tensor, epsilon: float) -> Tensor:
    return torch.where(x < 0, -1.0, 1.0).to(x.dtype) * x.abs().clamp_min(epsilon)


class _Bounded(torch.autograd.Function):
    """f and its derivative. Autograd through the formula of f gives 0 * inf = NaN where it saturates."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, root: float, offset: float, epsilon: float) -> Tensor:
        safe = _away_from_zero(x, epsilon)
        u = offset - root / safe
        ctx.save_for_backward(x, u)
        ctx.root, ctx.epsilon = root, epsilon
        return root * torch.tanh(u)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        x, u = ctx.saved_tensors
        q = torch.exp(-2.0 * u.abs())  # sech^2(u) = 4 q / (1 + q)^2 underflows to 0; cosh would overflow
        slope = (ctx.root / _away_from_zero(x, ctx.epsilon)).square() * 4.0 * q / (1.0 + q).square()
        return torch.where(x.abs() >= ctx.epsilon, gradient * slope, 0.0), None, None, None


class _Surrogate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, root: float, limit: float, epsilon: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.root, ctx.limit, ctx.epsilon = root, limit, epsilon
        return x.clamp_min(0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        safe = _away_from_zero(x, ctx.epsilon)
        factor = (x.clamp_min(0.0) / safe).square() - (ctx.root / safe).square()
        return gradient * factor.clamp(-ctx.limit, ctx.limit), None, None, None


class _Replacement(nn.Module):
    """Works in fp32 (float64 for float64 inputs) also under autocast, and answers in the dtype of its input."""

    def __init__(self, beta: float, epsilon: float) -> None:
        super().__init__()
        if not (beta > 0.0 and epsilon > 0.0):
            raise ValueError(f"beta and epsilon of an activation must be positive, got {beta} and {epsilon}")
        self.root, self.epsilon = math.sqrt(beta), epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Element by element, any shape."""
        with torch.autocast(x.device.type, enabled=False):
            return self._apply_to(x if x.dtype == torch.float64 else x.float()).to(x.dtype)

    def _apply_to(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class BoundedActivation(_Replacement):
    """f above. ``offset`` = sqrt(beta) C: 1 gives unit slope at the zero x = sqrt(beta)."""

    def __init__(self, beta: float, epsilon: float, offset: float = 1.0) -> None:
        super().__init__(beta, epsilon)
        self.offset = offset

    def _apply_to(self, x: Tensor) -> Tensor:
        result: Tensor = _Bounded.apply(x, self.root, self.offset, self.epsilon)
        return result


class SurrogateReLU(_Replacement):
    """ReLU with the backward factor above, clipped to [-limit, limit]."""

    def __init__(self, beta: float, epsilon: float, limit: float = 5.0) -> None:
        super().__init__(beta, epsilon)
        self.limit = limit

    def _apply_to(self, x: Tensor) -> Tensor:
        result: Tensor = _Surrogate.apply(x, self.root, self.limit, self.epsilon)
        return result


@torch.no_grad()
def relu_inputs(model: nn.Module, images: Tensor) -> dict[nn.Module, float]:
    """The nn.ReLU modules of ``model`` in the order in which one pass of ``images`` calls them, each with the mean
    square of its input. Costs that pass; the model's mode is the caller's."""
    sums: dict[nn.Module, tuple[float, int]] = {}

    def note(relu: nn.Module, args: tuple[Tensor, ...]) -> None:
        total, count = sums.get(relu, (0.0, 0))
        sums[relu] = (total + float(args[0].double().square().sum()), count + args[0].numel())

    handles = [m.register_forward_pre_hook(note) for m in model.modules() if type(m) is nn.ReLU]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return {relu: max(total / count, SMALLEST_SQUARE) for relu, (total, count) in sums.items()}


class Replaced:
    """Within ``with``, the ReLUs in ``mean_squares`` (of ``relu_inputs``) are replaced by ``make(mean square)``; after
    it, however it ends, the very same ReLU modules are back."""

    def __init__(
        self, model: nn.Module, mean_squares: dict[nn.Module, float], make: Callable[[float], nn.Module]
    ) -> None:
        self._pairs = [(relu, make(value)) for relu, value in mean_squares.items()]
        self._places = [
            [(parent, name) for parent in model.modules() for name, child in parent._modules.items() if child is relu]
            for relu, _ in self._pairs
        ]
        self.restored = len(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def restore(self, count: int) -> None:
        """The first ``count`` layers, in the order of the pass, are ReLU, the others replaced."""
        for position, ((relu, other), places) in enumerate(zip(self._pairs, self._places, strict=True)):
            for parent, name in places:
                parent._modules[name] = relu if position < count else other
        self.restored = count

    def __enter__(self) -> Replaced:
        self.restore(0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore(len(self))


def no_relus(facts: Facts) -> str | None:
    """Why a problem's model has no ReLU to replace, or None: the ``skip`` of variants that need one.

    The registered model is built without memory to see. A model that is not registered (somebody's own) passes.
    """
    model = laid_out(facts)
    if model is None or any(isinstance(module, nn.ReLU) for module in model.modules()):
        return None
    return f"{facts.model} has no nn.ReLU to replace (variant C needs none)"
