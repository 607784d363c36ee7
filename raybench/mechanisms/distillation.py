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


def kl_to_target(target: Tensor, student: Tensor) -> Tensor:
    """KL(target || softmax of ``student``) per sample in nats, [n]; ``target`` [n, K] are probabilities, zeros too."""
    divergence: Tensor = F.kl_div(F.log_softmax(student, dim=1), target, reduction="none").sum(dim=1)
    return divergence


def js_divergence(a: Tensor, b: Tensor, temperature: float = 1.0) -> Tensor:
    """Jensen-Shannon divergence per sample in nats, [n], at most ln 2, of two sets of softened logits [n, K]."""
    log_p, log_q = F.log_softmax(a / temperature, dim=1), F.log_softmax(b / temperature, dim=1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2.0)
    return 0.5 * (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(dim=1)


def retain_softmax(logits: Tensor, forget_classes: Sequence[int]) -> Tensor:
    """The softmax over the remaining classes, renormalised, [n, K]: exactly 0 at the forget classes."""
    masked = logits.clone()
    masked[:, list(forget_classes)] = -torch.inf
    return masked.softmax(dim=1)


def adversarial_without(teacher: Tensor, student: Tensor, forget_classes: Sequence[int]) -> Tensor:
    """Per sample [n]: the sum over classes of t_k ln(t_k / s_k), the summands of the forget classes with their sign
    turned. A generator that maximises it seeks disagreement on the remaining classes and shuns forget mass."""
    log_t, log_s = F.log_softmax(teacher, dim=1), F.log_softmax(student, dim=1)
    summands = log_t.exp() * (log_t - log_s)
    sign = torch.ones(teacher.shape[1], device=teacher.device, dtype=teacher.dtype)
    sign[list(forget_classes)] = -1.0
    return (summands * sign).sum(dim=1)


def move_forget_excess(logits: Tensor, forget_classes: Sequence[int], probability_cutoff: float) -> Tensor:
    """Teacher's logits [n, K] with what they hold for the forget classes given to the others.

    Where the softmax of a forget class c is above ``probability_cutoff``, its excess z_c - min_k z_k goes in equal
    parts to the remaining classes and z_c becomes min_k z_k. Softmax and minimum are those of the logits given.
    """
    forget = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
    forget[list(forget_classes)] = True
    over = (logits.softmax(dim=1) > probability_cutoff) & forget
    excess = torch.where(over, logits - logits.amin(dim=1, keepdim=True), 0.0)
    share = excess.sum(dim=1, keepdim=True) / (~forget).sum()
    return logits - excess + torch.where(forget, 0.0, share)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the softmax per sample in nats, [n], from logits [n, K]; at most ln K."""
    log_p = F.log_softmax(logits, dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


def class_balance(logits: Tensor) -> Tensor:
    """sum_k p_k ln p_k with p the mean softmax of the batch; zero dimensional, at least -ln K."""
    log_p = F.log_softmax(logits, dim=1).logsumexp(dim=0) - math.log(len(logits))
    return (log_p.exp() * log_p).sum()


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
        accuracy: the same of the student offered last.
    """

    images: Tensor
    labels: Tensor
    num_classes: int
    patience: int = 3
    kept: nn.Module | None = field(default=None, init=False)
    kept_step: int = field(default=0, init=False)
    kept_accuracy: float = field(default=math.nan, init=False)
    accuracy: float = field(default=math.nan, init=False)
    _kept_excess: float = field(default=math.inf, init=False)
    _violations: int = field(default=0, init=False)

    @torch.no_grad()
    def offer(self, student: nn.Module, step: int, images: Tensor, teacher: Tensor) -> bool:
        """Judge ``student`` (in evaluation mode); ``images`` passed the gate, ``teacher`` is the teacher's logits
        there. True when training should stop."""
        hits = student(self.images).argmax(dim=1) == self.labels
        chance = 1.0 / self.num_classes
        excess = self.accuracy = 0.0
        for label in self.labels.unique():
            mine = hits[self.labels == label].double()
            bound = chance + 2.0 * math.sqrt(chance * (1.0 - chance) / len(mine))
            excess = max(excess, float(mine.mean()) - bound)
            self.accuracy = max(self.accuracy, float(mine.mean()))
        if self._beats_kept(student, excess, images, teacher.argmax(dim=1)):
            self.kept, self.kept_step = copy.deepcopy(student), step
            self.kept_accuracy, self._kept_excess = self.accuracy, excess
        self._violations = self._violations + 1 if excess > 0.0 else 0
        return self._violations >= self.patience

    def _beats_kept(self, student: nn.Module, excess: float, images: Tensor, answers: Tensor) -> bool:
        if self.kept is None or excess < self._kept_excess:
            return True
        if excess > self._kept_excess:
            return False
        agreement, before = (int((m(images).argmax(dim=1) == answers).sum()) for m in (student, self.kept))
        return agreement >= before
