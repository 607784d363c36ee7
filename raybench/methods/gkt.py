"""Gated knowledge transfer: zero-shot unlearning of classes, with an entropy gate beside the probability gate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from torch import Tensor, nn

from raybench.mechanisms.distillation import attention_loss, forget_gate, kl_to_teacher, run_with_stages
from raybench.mechanisms.transfer import FEWEST, Lesson, Transfer, check_counts, halvings, run_transfer
from raybench.registry import CLASS, METHODS
from raybench.space import nuisance, scientific
from raybench.task import UnlearningTask


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
        check_counts(self)


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
    complexity="pseudo-batches x B x steps",
    batch_norm="fresh (a new student)",
)
def gkt(task: UnlearningTask, hp: GktHparams) -> nn.Module:
    """A new student learns from the original on generated images that do not look like the forget classes.

    Chundawat, Tarun, Mandal and Kankanhalli 2023, arXiv:2201.05629, "Gated Knowledge Transfer": a generator G maximises
    KL(T || S), the student S minimises KL(T || S) + beta L_attention, both on samples G(z) that pass the gates, without
    any data. The entropy gate H(T(x)) < ``entropy_cutoff`` is a later proposal. Gates do not see dark knowledge or what
    attention carries: the student relearns the class sooner or later, so read retain and forget accuracy together.

    From the official code: one z serves all steps of a round; L_attention = sum over stages of mean (Q(a_T) - Q(a_S))^2
    stands beside KL / K; here both times K. The student's batch norm trains from fresh buffers (stays at (0, 1) with
    ``official_quirks``), the teacher's is read. Cost of a round in batches: 2 forward through generator and teacher, 11
    through the student, 1 backward through all, 10 through the student; once, ``inversion_steps`` passes per proxy.

    Deviations:
        - x is detached and the teacher's answers are kept within the student steps: same numbers, less work.
        - the student's released step-size schedule and choice of checkpoint look at real retain and forget data, which
          is not zero-shot; here the step size is constant, and images inverted from the teacher choose and stop (the
          paper's advice; see ``ProxyRule``). Curves with ``stop_on_proxies: false`` show what real data would choose.
        - after a batch that the gates reject the released loop goes on with the next z of its loader, so that steps and
          noise drift apart, and after 100 of them it reloads an older generator; here z is drawn anew, and after
          ``max_redraws`` in a row the run ends (stop reason ``gates_shut``).
        - evaluation mode of the student, the generator's halving step size and losses divided by K are accidents of the
          release, kept behind ``official_quirks``. The release also teaches on a single sample that passed the gate;
          here it takes two, as batch norm in training mode does.
        - attention is compared at the model's own stages: allcnn has as many as the released AllCNN (whose third layer
          is twice as wide), lenet5's end behind the pooling, not before it, residual networks' behind the block.
    """
    return run_transfer(_GatedTransfer(task, hp))


class _GatedTransfer(Transfer):
    """The losses of gated knowledge transfer."""

    hp: GktHparams

    @property
    def scale(self) -> float:
        """The released code's mean over classes; without it beta is multiplied by K instead."""
        return 1.0 / self.task.num_classes if self.hp.official_quirks else 1.0

    def begin_round(self) -> None:
        self.student.train(not self.hp.official_quirks)
        if self.hp.official_quirks:
            for group in self.generator_optimiser.param_groups:
                group["lr"] = self.hp.generator_lr * 0.5 ** halvings(self.rounds)

    def generator_loss(self, images: Tensor) -> Tensor | None:
        answers = self.teacher(images)
        gate = self._gate(answers)
        if int(gate.sum()) < FEWEST:
            return None
        return -self.scale * kl_to_teacher(answers[gate], self.student(images[gate]), self.hp.temperature).mean()

    def lesson(self, images: Tensor) -> Lesson | None:
        answers, stages = run_with_stages(self.teacher, images)
        return self.keep(images, answers, self._gate(answers), stages)

    def student_loss(self, lesson: Lesson) -> Tensor:
        logits, own = run_with_stages(self.student, lesson.images)
        loss = kl_to_teacher(lesson.answers, logits, self.hp.temperature).mean()
        if self.hp.attention:
            loss = loss + self.hp.attention * self.task.num_classes * attention_loss(lesson.stages, own)
        return self.scale * loss

    def _gate(self, answers: Tensor) -> Tensor:
        classes, hp = self.task.forget_classes, self.hp
        return forget_gate(answers.detach(), classes, hp.probability_cutoff, hp.entropy_cutoff)
