"""One step along a Fisher ratio, its sign by trial: how the mnemonic code forgets, and its control on real images.

Yamashita et al. 2024 (arXiv:2306.05670), Equations 5 to 7 and Algorithm 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Tensors = Mapping[str, Tensor]

ROUNDING = 1e-9  # a sum that is smaller by less may be equal
OFFSET = 1e-16  # added to both sums of squares before they are divided by the numbers of classes


def mean_squares(gradients: Iterable[Tensors]) -> dict[str, Tensor]:
    """(sum of squares + 1e-16) / number of gradients, per parameter: f_F or f_R from the gradients of its classes."""
    return class_mean({name: value.square() for name, value in gradient.items()} for gradient in gradients)


def class_mean(squares: Iterable[Tensors]) -> dict[str, Tensor]:
    """(sum + 1e-16) / number, per parameter: f_F or f_R from the squared gradients of its classes."""
    total: dict[str, Tensor] = {}
    count = 0
    for count, square in enumerate(squares, start=1):  # noqa: B007, the last count is what divides
        for name, value in square.items():
            total[name] = total.get(name, torch.full_like(value, OFFSET)) + value
    return {name: value / count for name, value in total.items()}


def perturbation(forget: Tensor, retain: Tensor, lambda1: float, lambda2: float) -> Tensor:
    """alpha eta of one tensor (Equations 6 and 7), float64, with alpha = min(lambda1, lambda2 / max eta).

    ``forget`` and ``retain`` are f_F and f_R of the tensor. The ratio is taken in log space; where it is not a
    number eta is 1, and where it is infinite eta is the tensor's largest finite one.
    """
    log_ratio = forget.double().log() - retain.double().log()
    log_ratio = torch.where(log_ratio.isnan(), 0.0, log_ratio)
    largest = log_ratio[log_ratio < torch.inf].max() if bool((log_ratio < torch.inf).any()) else log_ratio.new_zeros(())
    eta = log_ratio.clamp(max=largest).exp()
    return torch.clamp(lambda2 / eta.max(), max=lambda1) * eta


@dataclass(frozen=True)
class Outcome:
    """The sign that was kept, and A_R and E_F with it on the inputs that it was chosen on."""

    sign: int
    a_r: float
    e_f: float
    largest_change: float


def step_by_better_sign(model: nn.Module, step: Tensors, scores: Callable[[nn.Module], tuple[float, float]]) -> Outcome:
    """Move ``model`` by plus or minus ``step``, one sign for the whole network: that with the larger A_R + E_F.

    ``scores`` measures (A_R, E_F) of a model. Equal sums mean minus. Parameters that ``step`` does not name stay,
    and so do buffers.
    """
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    outcome = {}
    for sign in (-1, 1):
        _move(model, start, step, sign)
        outcome[sign] = scores(model)
    sign = 1 if sum(outcome[1]) > sum(outcome[-1]) else -1
    _move(model, start, step, sign)
    largest = max(float(change.abs().max()) for change in step.values())
    return Outcome(sign, *outcome[sign], largest)


def step_by_race(
    model: nn.Module, step: Tensors, batches: Sequence[tuple[Tensor, Tensor]], forget_classes: Sequence[int], start: int
) -> Outcome:
    """``step_by_better_sign`` with A_R and E_F on ``batches`` of images and labels, and the same outcome. Both signs
    look at the first ``start`` batches, the better one at all others, and the other one until it cannot win any more.
    """
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    tallies = {sign: _Tally(batches, forget_classes) for sign in (-1, 1)}

    def look(sign: int, end: int, beat: float = -1.0) -> None:
        _move(model, before, step, sign)
        while tallies[sign].looked < end and tallies[sign].at_most >= beat:
            tallies[sign].look(model)

    for sign in (-1, 1):
        look(sign, start)
    leader = 1 if tallies[1].at_most > tallies[-1].at_most else -1
    look(leader, len(batches))
    look(-leader, len(batches), beat=tallies[leader].at_most - ROUNDING)
    sign = 1 if tallies[1].at_most > tallies[-1].at_most else -1
    _move(model, before, step, sign)
    return Outcome(sign, *tallies[sign].scores, max(float(change.abs().max()) for change in step.values()))


class _Tally:
    """A_R and E_F of one model, batch by batch."""

    def __init__(self, batches: Sequence[tuple[Tensor, Tensor]], forget_classes: Sequence[int]) -> None:
        self._batches = batches
        self._forget = [torch.isin(y, torch.tensor(list(forget_classes), device=y.device)) for _, y in batches]
        self._gone = sum(int(forget.sum()) for forget in self._forget)
        self._kept = sum(len(forget) for forget in self._forget) - self._gone
        self._spared = self._missed = 0  # samples of the forgotten classes still right, of the others wrong by now
        self.looked = 0

    @torch.no_grad()
    def look(self, model: nn.Module) -> None:
        """Count the next batch."""
        (images, labels), forget = self._batches[self.looked], self._forget[self.looked]
        correct = model(images).argmax(1) == labels
        self._spared += int(correct[forget].sum())
        self._missed += int((~correct[~forget]).sum())
        self.looked += 1

    @property
    def scores(self) -> tuple[float, float]:
        """(A_R, E_F), if what has not been looked at yet is all in favour of the model."""
        return (self._kept - self._missed) / self._kept, 1.0 - self._spared / self._gone

    @property
    def at_most(self) -> float:
        """The sum that is still possible."""
        return sum(self.scores)


def class_scores(predicted: Tensor, labels: Tensor, forget_classes: Sequence[int]) -> tuple[float, float]:
    """(A_R, E_F): the accuracy on samples of the other classes, the error on those of ``forget_classes``."""
    correct = predicted == labels
    forgotten = torch.isin(labels, torch.tensor(list(forget_classes), device=labels.device))
    return float(correct[~forgotten].double().mean()), 1.0 - float(correct[forgotten].double().mean())


@torch.no_grad()
def _move(model: nn.Module, start: Tensors, step: Tensors, sign: int) -> None:
    for name, p in model.named_parameters():
        if name in step:
            p.copy_(start[name] + sign * step[name])
