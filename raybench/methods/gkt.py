"""Gated knowledge transfer: zero-shot unlearning of classes, with an entropy gate beside the probability gate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from torch import Tensor, nn

from raybench.mechanisms.distillation import ProxyRule, attention_loss, forget_gate, kl_to_teacher, run_with_stages
from raybench.mechanisms.generators import NoiseGenerator
from raybench.mechanisms.inversion import Inversion, invert
from raybench.registry import CLASS, METHODS
from raybench.seeding import seeded_globals
from raybench.space import nuisance, scientific
from raybench.task import UnlearningTask

LR_HALVES_EVERY = 150  # pseudo-batches, official_quirks: the released scheduler watches a constant
FEWEST = 2  # batch norm in training mode needs two samples


@dataclass(frozen=True)
class GktHparams:
    """Defaults of the official notebook, where it has the field."""

    entropy_cutoff: Annotated[
        float | None, scientific(CategoricalDistribution([None, 0.05, 0.1, 0.25, 0.6, 1.0, 1.6]))
    ] = None
    """Nats: only samples on which the teacher's entropy is below this teach. None is the published method."""
    probability_cutoff: Annotated[float, nuisance(FloatDistribution(1e-4, 0.1, log=True))] = 0.01
    """Samples teach when the teacher gives each forget class at most this probability."""
    attention: Annotated[float, nuisance(CategoricalDistribution([0.0, 10.0, 50.0, 250.0, 2500.0]))] = 250.0
    """Weight beta of the attention term beside KL / K (the official mean over samples and classes); 0 is off."""
    temperature: Annotated[float, nuisance(FloatDistribution(0.5, 4.0, log=True))] = 1.0
    """Softening of both networks' logits in the divergence."""
    student_lr: Annotated[float, nuisance(FloatDistribution(3e-4, 1e-2, log=True))] = 1e-3
    """Adam step size of the student."""
    generator_lr: Annotated[float, nuisance(FloatDistribution(1e-4, 1e-2, log=True))] = 1e-3
    """Adam step size of the generator."""
    pseudo_batches: Annotated[int, nuisance(IntDistribution(100, 4000, log=True))] = 4000
    """Largest number of rounds; the proxies usually stop the run earlier."""
    batch_size: int = 256
    """Generated samples a round, before the gates."""
    latent_dim: int = 128
    """Dimensions of the generator's noise."""
    generator_width: int = 128
    """Feature maps of the generator."""
    generator_steps: int = 1
    """Generator steps a round."""
    student_steps: int = 10
    """Student steps a round, all on the same samples."""
    clip_norm: float = 5.0
    """Largest gradient norm, of the student and of the generator."""
    max_redraws: int = 100
    """Batches in a row that the gates may reject before the method gives up and returns what it has."""
    stop_on_proxies: bool = True
    """Stop, and choose the student, by images inverted from the teacher; off runs to the end and takes the last."""
    check_every: int = 50
    """Rounds between two looks at the proxies, and between two checkpoints."""
    proxies: int = 256
    """Inverted images per forget class."""
    inversion_steps: int = 200
    """Steps of the inversion of the proxies."""
    official_quirks: bool = False
    """As released: the student's batch norm stays in evaluation mode with statistics (0, 1), the generator's step
    size halves every 150 rounds, and losses are means over samples and classes, so that clipping binds less."""

    def __post_init__(self) -> None:
        positive = ("pseudo_batches", "batch_size", "latent_dim", "student_steps", "max_redraws", "check_every")
        for name in (*positive, "generator_steps", "proxies"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.batch_size < FEWEST:
            raise ValueError(f"batch_size must be at least {FEWEST}, got {self.batch_size}")


TINY = {"pseudo_batches": 4, "batch_size": 32, "latent_dim": 16, "generator_width": 4, "student_steps": 2}
TINY |= {"max_redraws": 8, "check_every": 2, "proxies": 8, "inversion_steps": 5}


@METHODS.register(
    "gkt",
    hparams=GktHparams,
    label="GKT",
    paper="arXiv:2201.05629",
    needs=set(),
    scope={CLASS},
    tiny=TINY,
    fresh=True,
)
def gkt(task: UnlearningTask, hp: GktHparams) -> nn.Module:
    """A new student learns from the original on generated images that do not look like the forget classes.

    Chundawat, Tarun, Mandal and Kankanhalli 2023, arXiv:2201.05629, section "Gated Knowledge Transfer": a
    generator G maximises KL(T || S), the student S minimises KL(T || S) + beta L_attention, both on the samples
    G(z) that pass the gates. No data are used at all.

    From the official code: one z serves a round of generator and student steps; the term
    L_attention = sum over stages of mean (Q(a_T) - Q(a_S))^2 stands beside KL / K; here both are multiplied by K.
    Deviations: x is detached and the teacher's answers are kept within the student steps (same numbers, less
    work); a batch that the gates reject is drawn anew; the released step size schedule and choice of checkpoint
    look at real data, here inverted images stand in (the paper's advice, see ``ProxyRule``).
    """
    loop = _Transfer(task, hp)
    rule = _proxy_rule(task, hp) if hp.stop_on_proxies else None
    step = 0
    for step in range(1, hp.pseudo_batches + 1):
        lesson = loop.round()
        if lesson is None:  # the gates stay shut: more rounds would meet the same generator
            break
        if step % hp.check_every == 0 or step == hp.pseudo_batches:
            loop.student.eval()
            if rule is not None and rule.offer(loop.student, step, *lesson):
                break
            task.checkpoint(loop.student, step)
    task.report({"pseudo_batches": step, "share_taught": loop.taught / max(loop.drawn, 1)})
    if rule is None or rule.kept is None:
        return loop.student.eval()
    task.report({"kept_pseudo_batch": rule.kept_step, "proxy_forget_accuracy": rule.kept_accuracy})
    return rule.kept.eval()


class _Transfer:
    """Teacher, student, generator and their optimisers."""

    def __init__(self, task: UnlearningTask, hp: GktHparams) -> None:
        self.task, self.hp = task, hp
        self.teacher = task.model.requires_grad_(False)
        self.student = task.new_model()
        seed = int(torch.randint(2**62, (1,), generator=task.generator, device=task.device).item())
        with seeded_globals(seed):
            generator = NoiseGenerator(task.input_shape, hp.generator_width, hp.latent_dim)
        self.generator = generator.to(task.device)
        task.track(self.generator)
        self.student_adam = torch.optim.Adam(self.student.parameters(), lr=hp.student_lr)
        self.generator_adam = torch.optim.Adam(self.generator.parameters(), lr=hp.generator_lr)
        self.scale = 1.0 / task.num_classes if hp.official_quirks else 1.0
        self.rounds = self.drawn = self.taught = 0

    def round(self) -> tuple[Tensor, Tensor] | None:
        """Generator steps, then student steps, on one z. The last lesson (images, teacher's logits), or None
        when the gates rejected ``max_redraws`` batches in a row."""
        self.rounds += 1
        self.student.train(not self.hp.official_quirks)
        if self.hp.official_quirks:
            for group in self.generator_adam.param_groups:
                group["lr"] = self.hp.generator_lr * 0.5 ** (self.rounds // LR_HALVES_EVERY)
        for _ in range(self.hp.max_redraws):
            z = self.generator.noise(self.hp.batch_size, self.task.generator)
            if all(self._generator_step(z) for _ in range(self.hp.generator_steps)) and (lesson := self._teach(z)):
                return lesson
        return None

    def _generator_step(self, z: Tensor) -> bool:
        images = self.generator(z)
        answers = self.teacher(images)
        gate = self._gate(answers)
        if int(gate.sum()) < FEWEST:
            return False
        self.student.requires_grad_(False)  # only the way to the images is needed
        divergence = kl_to_teacher(answers[gate], self.student(images[gate]), self.hp.temperature).mean()
        self.student.requires_grad_(True)
        self._descend(-self.scale * divergence, self.generator, self.generator_adam)
        return True

    def _teach(self, z: Tensor) -> tuple[Tensor, Tensor] | None:
        with torch.no_grad():
            images = self.generator(z)
            answers, stages = run_with_stages(self.teacher, images)
        gate = self._gate(answers)
        self.drawn += len(gate)
        if int(gate.sum()) < FEWEST:
            return None
        self.taught += int(gate.sum())
        images, answers, stages = images[gate], answers[gate], [stage[gate] for stage in stages]
        weight = self.hp.attention * self.task.num_classes
        for _ in range(self.hp.student_steps):
            logits, own = run_with_stages(self.student, images)
            loss = kl_to_teacher(answers, logits, self.hp.temperature).mean()
            if weight:
                loss = loss + weight * attention_loss(stages, own)
            self._descend(self.scale * loss, self.student, self.student_adam)
        return images, answers

    def _gate(self, answers: Tensor) -> Tensor:
        return forget_gate(
            answers.detach(), self.task.forget_classes, self.hp.probability_cutoff, self.hp.entropy_cutoff
        )

    def _descend(self, loss: Tensor, module: nn.Module, adam: torch.optim.Adam) -> None:
        adam.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), self.hp.clip_norm)
        adam.step()


def _proxy_rule(task: UnlearningTask, hp: GktHparams) -> ProxyRule:
    """The rule on images inverted from the original; made once per problem, since no searched field enters."""
    labels = torch.tensor(task.forget_classes, device=task.device).repeat_interleave(hp.proxies)

    def compute(generator: torch.Generator) -> Tensor:
        black, white = (
            task.from_pixels(torch.full((1, task.input_shape[0], 1, 1), v, device=task.device)) for v in (0.0, 1.0)
        )
        settings = Inversion(steps=hp.inversion_steps)
        return invert(task.model, labels, task.input_shape, generator, settings, (black, white))

    images = task.once("proxies", compute, per_class=hp.proxies, steps=hp.inversion_steps)["value"]
    return ProxyRule(images, labels, task.num_classes)
