"""Knowledge transfer without data: a generator and a student play against a frozen teacher.

The loop, its stopping rule and its reports; what generator and student minimise is the method's (see ``Transfer``).
Zero-shot knowledge transfer (Micaelli and Storkey 2019, arXiv:1905.09768, algorithm 1), gated for unlearning by
Chundawat et al. 2023 (arXiv:2201.05629).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from raybench.mechanisms.distillation import ProxyRule
from raybench.mechanisms.generators import NoiseGenerator
from raybench.mechanisms.inversion import Inversion, invert, pixel_bounds
from raybench.seeding import seeded_globals
from raybench.task import UnlearningTask

FEWEST = 2  # batch norm in training mode needs two samples
SHOWN = 64  # images of a grid
PROXIES, MAX_STEPS, GATES_SHUT = "proxies", "max_steps", "gates_shut"  # reasons to stop

# The released scheduler of the generator watches a constant, so it halves from round 152 on, every 150 rounds, until
# the change is below its threshold of 1e-8 (16 times at the default step size).
FIRST_HALVED, LR_HALVES_EVERY, HALVINGS = 152, 150, 16


class TransferHparams(Protocol):
    """The fields that every method of the family has; see ``raybench.methods.gkt.GktHparams``."""

    @property
    def student_lr(self) -> float: ...
    @property
    def generator_lr(self) -> float: ...
    @property
    def pseudo_batches(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def latent_dim(self) -> int: ...
    @property
    def generator_width(self) -> int: ...
    @property
    def generator_steps(self) -> int: ...
    @property
    def student_steps(self) -> int: ...
    @property
    def clip_norm(self) -> float | None: ...
    @property
    def max_redraws(self) -> int: ...
    @property
    def stop_on_proxies(self) -> bool: ...
    @property
    def check_every(self) -> int: ...
    @property
    def proxies(self) -> int: ...
    @property
    def inversion_steps(self) -> int: ...


def check_counts(hp: TransferHparams) -> None:
    """``ValueError`` where a number of rounds, steps or samples is too small."""
    counts = ("pseudo_batches", "latent_dim", "student_steps", "max_redraws", "check_every", "generator_steps")
    for name in (*counts, "proxies"):
        if getattr(hp, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(hp, name)}")
    if hp.batch_size < FEWEST:
        raise ValueError(f"batch_size must be at least {FEWEST}, got {hp.batch_size}")


def halvings(round_: int) -> int:
    """How often the released scheduler has halved the generator's step size by round ``round_`` (from 1)."""
    return min(max(round_ - FIRST_HALVED + LR_HALVES_EVERY, 0) // LR_HALVES_EVERY, HALVINGS)


@dataclass(frozen=True)
class Lesson:
    """What the student learns from: images [n, ...], the logits [n, K] it should give, and, where the method
    compares them, the teacher's stages."""

    images: Tensor
    answers: Tensor
    stages: tuple[Tensor, ...] = ()


class Transfer(ABC):
    """Teacher, student, generator and their optimisers; a method says what they minimise.

    Attributes:
        fresh_noise: a new z for every step, rather than one for a whole round.
        drawn, taught: samples drawn for lessons so far, and those that made it into one (counted by ``keep``).
    """

    fresh_noise = False

    def __init__(self, task: UnlearningTask, hp: TransferHparams) -> None:
        self.task, self.hp = task, hp
        self.teacher = task.model.requires_grad_(False)
        self.student = task.new_model()
        seed = int(torch.randint(2**62, (1,), generator=task.generator, device=task.device).item())
        with seeded_globals(seed):
            generator = NoiseGenerator(task.input_shape, hp.generator_width, hp.latent_dim)
        self.generator = generator.to(task.device)
        task.track(self.generator)
        self.student_optimiser, self.generator_optimiser = self.optimisers()
        self.rounds = self.drawn = self.taught = 0

    def optimisers(self) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
        """Of the student and of the generator; Adam for both."""
        return (
            torch.optim.Adam(self.student.parameters(), lr=self.hp.student_lr),
            torch.optim.Adam(self.generator.parameters(), lr=self.hp.generator_lr),
        )

    @abstractmethod
    def generator_loss(self, images: Tensor) -> Tensor | None:
        """What the generator minimises at its ``images``; None where it cannot learn from this batch. The student's
        weights are frozen meanwhile: only the way to the images is needed."""

    @abstractmethod
    def lesson(self, images: Tensor) -> Lesson | None:
        """What to teach on ``images``, without gradient; None where nothing of the batch may be taught."""

    @abstractmethod
    def student_loss(self, lesson: Lesson) -> Tensor:
        """What the student minimises."""

    def begin_round(self) -> None:
        """Modes and step sizes of round ``self.rounds`` (from 1)."""
        self.student.train()

    def round(self) -> Lesson | None:
        """Generator steps, then student steps. The last lesson, or None when ``max_redraws`` batches in a row had
        nothing to teach."""
        self.rounds += 1
        self.begin_round()
        for _ in range(self.hp.max_redraws):
            z = self._noise()
            if all(self._generator_step(z) for _ in range(self.hp.generator_steps)) and (lesson := self._teach(z)):
                return lesson
        return None

    def keep(self, images: Tensor, answers: Tensor, gate: Tensor, stages: list[Tensor]) -> Lesson | None:
        """The lesson of the samples where ``gate`` [n] is true, if they are enough."""
        self.drawn += len(gate)
        kept = int(gate.sum())
        if kept < FEWEST:
            return None
        self.taught += kept
        return Lesson(images[gate], answers[gate], tuple(stage[gate] for stage in stages))

    def _noise(self) -> Tensor:
        return self.generator.noise(self.hp.batch_size, self.task.generator)

    def _generator_step(self, z: Tensor) -> bool:
        images = self.generator(self._noise() if self.fresh_noise else z)
        self.student.requires_grad_(False)
        loss = self.generator_loss(images)
        self.student.requires_grad_(True)
        if loss is None:
            return False
        self._descend(loss, self.generator, self.generator_optimiser)
        return True

    def _teach(self, z: Tensor) -> Lesson | None:
        lesson = self._lesson(z)
        if lesson is None:
            return None
        for step in range(self.hp.student_steps):
            if step and self.fresh_noise:  # a batch with nothing to teach leaves the lesson before it
                lesson = self._lesson(self._noise()) or lesson
            self._descend(self.student_loss(lesson), self.student, self.student_optimiser)
        return lesson

    def _lesson(self, z: Tensor) -> Lesson | None:
        with torch.no_grad():
            return self.lesson(self.generator(z))

    def _descend(self, loss: Tensor, module: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if self.hp.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(module.parameters(), self.hp.clip_norm)
        optimiser.step()


def run_transfer(loop: Transfer) -> nn.Module:
    """Rounds until the proxies, the gates or ``pseudo_batches`` end them. The student that the proxies chose, or
    the last one where they are switched off.

    Every ``check_every`` rounds the student is judged by the proxies and offered to ``task.checkpoint`` (so a curve
    has the point at which the rule stops, too) with the scalars ``share_taught``, ``proxy_forget_accuracy`` and
    ``kept_pseudo_batch``: what the rule would return if the run ended there. Reports the same, ``pseudo_batches``,
    the stop reason and the image grids ``generated`` (of the last lesson) and ``proxies``.
    """
    task, hp = loop.task, loop.hp
    rule = proxy_rule(task, hp) if hp.stop_on_proxies else None
    stop_reason = MAX_STEPS
    for step in range(1, hp.pseudo_batches + 1):
        lesson = loop.round()
        task.report({"pseudo_batches": step, "share_taught": loop.taught / max(loop.drawn, 1)})
        if lesson is None:  # the gates stay shut: more rounds would meet the same generator
            stop_reason = GATES_SHUT
            break
        if step % hp.check_every == 0 or step == hp.pseudo_batches:
            loop.student.eval()
            stop = rule is not None and rule.offer(loop.student, step, lesson.images, lesson.answers)
            _checkpoint(loop, rule, lesson, step)
            if stop:
                stop_reason = PROXIES
                break
    task.report(stop_reason=stop_reason)
    chosen = loop.student if rule is None or rule.kept is None else rule.kept
    return chosen.eval()


def _checkpoint(loop: Transfer, rule: ProxyRule | None, lesson: Lesson, step: int) -> None:
    """Report first: a stopping rule of the spec may end the run inside ``task.checkpoint``."""
    task = loop.task
    scalars: dict[str, Any] = {"share_taught": loop.taught / max(loop.drawn, 1)}
    images = {"generated": task.to_pixels(lesson.images[:SHOWN]).clamp(0.0, 1.0)}
    if rule is not None:
        kept = {"kept_pseudo_batch": rule.kept_step}
        task.report(kept | {"proxy_forget_accuracy": rule.kept_accuracy})
        scalars |= kept | {"proxy_forget_accuracy": rule.accuracy}
        images["proxies"] = task.to_pixels(rule.images[:: max(1, len(rule.images) // SHOWN)]).clamp(0.0, 1.0)
    task.report(images=images)
    task.checkpoint(loop.student, step, **scalars)


def proxy_rule(task: UnlearningTask, hp: TransferHparams) -> ProxyRule:
    """The rule on images inverted from the original; made once per problem, since no searched field enters."""
    labels = torch.tensor(task.forget_classes, device=task.device).repeat_interleave(hp.proxies)

    def compute(generator: torch.Generator) -> Tensor:
        settings = Inversion(steps=hp.inversion_steps)
        return invert(task.model, labels, task.input_shape, generator, settings, pixel_bounds(task))

    images = task.once("proxies", compute, per_class=hp.proxies, steps=hp.inversion_steps)["value"]
    return ProxyRule(images, labels, task.num_classes)
