"""Distilling a teacher into a student, and the gates and stopping rule of data-free unlearning.

Shared by the gated-knowledge-transfer family. Every function works on tensors; nothing here draws random numbers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def kl_to_teacher(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(T || S) per sample in nats, [n], from logits [n, K], both softened by ``temperature``.

    No factor temperature squared (Hinton, Vinyals, Dean 2015 multiply by it), as in gated knowledge transfer.
    """
    target = F.log_softmax(teacher / temperature, dim=1)
    guess = F.log_softmax(student / temperature, dim=1)
    return (target.exp() * (target - guess)).sum(dim=1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the softmax per sample in nats, [n], from logits [n, K]; at most ln K."""
    log_p = F.log_softmax(logits, dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


def forget_gate(
    teacher: Tensor, forget_classes: Sequence[int], probability_cutoff: float, entropy_cutoff: float | None = None
) -> Tensor:
    """Which samples may teach, bool [n], from teacher logits [n, K].

    A sample passes where the teacher gives every forget class at most ``probability_cutoff`` (the product of the
    gates of the classes; arXiv:2201.05629, "Gated Knowledge Transfer") and, with an ``entropy_cutoff`` in nats,
    where the entropy of the teacher is below it.
    """
    open_ = (teacher.softmax(dim=1)[:, list(forget_classes)] <= probability_cutoff).all(dim=1)
    if entropy_cutoff is not None:
        open_ &= entropy(teacher) < entropy_cutoff
    return open_


def run_with_stages(model: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits [n, K] and the outputs of ``model.stages()`` in order, from one pass."""
    outputs: list[Tensor] = []

    def keep(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        outputs.append(output)

    handles = [stage.register_forward_hook(keep) for stage in model.stages()]  # type: ignore[operator]
    try:
        return model(images), outputs
    finally:
        for handle in handles:
            handle.remove()


def attention_map(activation: Tensor) -> Tensor:
    """Q(a) = v / |v| with v the mean over channels of a squared, [n, c, h, w] -> [n, h w].

    Zagoruyko and Komodakis 2017 (arXiv:1612.03928, section 3.1). A map that is zero everywhere stays zero.
    """
    return F.normalize(activation.square().mean(dim=1).flatten(1), dim=1)


def attention_loss(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """Sum over stages of the mean of (Q(teacher) - Q(student)) squared; zero dimensional.

    Stages without a spatial map (dense layers, [n, d]) have no attention and are passed over; 0 if none has one.
    """
    total = torch.zeros((), device=student[0].device if student else None)
    for a, b in zip(teacher, student, strict=True):
        if b.ndim == 4:
            total = total + (attention_map(a) - attention_map(b)).square().mean()
    return total


@dataclass
class ProxyRule:
    """When to stop without data, and which student to keep: the forget classes must stay unknown to the student.

    ``images`` [n, ...] and ``labels`` [n] are inverted from the teacher, forget classes only. A student violates
    the rule when it recognises the proxies of some forget class more often than guessing would: accuracy above
    1/K + 2 sqrt((1/K)(1 - 1/K) / n_class). The rule stops after ``patience`` violations in a row and keeps,
    of the students that do not violate it (or of those that violate it least), the one that agrees most with
    the teacher; two students are compared on the same samples, those of the later one.

    Attributes:
        kept, kept_step, kept_accuracy: the student chosen so far, when it was offered, and how often it recognised
            the proxies of its worst forget class.
    """

    images: Tensor
    labels: Tensor
    num_classes: int
    patience: int = 3
    kept: nn.Module | None = field(default=None, init=False)
    kept_step: int = field(default=0, init=False)
    kept_accuracy: float = field(default=math.nan, init=False)
    _kept_excess: float = field(default=math.inf, init=False)
    _violations: int = field(default=0, init=False)

    @torch.no_grad()
    def offer(self, student: nn.Module, step: int, images: Tensor, teacher: Tensor) -> bool:
        """Judge ``student`` (in evaluation mode); ``images`` passed the gate, ``teacher`` is the teacher's logits
        there. True when training should stop."""
        hits = student(self.images).argmax(dim=1) == self.labels
        chance = 1.0 / self.num_classes
        excess = accuracy = 0.0
        for label in self.labels.unique():
            mine = hits[self.labels == label].double()
            bound = chance + 2.0 * math.sqrt(chance * (1.0 - chance) / len(mine))
            excess = max(excess, float(mine.mean()) - bound)
            accuracy = max(accuracy, float(mine.mean()))
        if self._beats_kept(student, excess, images, teacher.argmax(dim=1)):
            self.kept, self.kept_step = copy.deepcopy(student), step
            self.kept_accuracy, self._kept_excess = accuracy, excess
        self._violations = self._violations + 1 if excess > 0.0 else 0
        return self._violations >= self.patience

    def _beats_kept(self, student: nn.Module, excess: float, images: Tensor, answers: Tensor) -> bool:
        if self.kept is None or excess < self._kept_excess:
            return True
        if excess > self._kept_excess:
            return False
        agreement, before = (int((m(images).argmax(dim=1) == answers).sum()) for m in (student, self.kept))
        return agreement >= before
