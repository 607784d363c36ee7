"""ERM-KTP: channels gated by class in training; a fresh student learns from those that the forgotten class lacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from optuna.distributions import FloatDistribution, IntDistribution
from torch import Tensor, nn

from raybench.data import Batch
from raybench.mechanisms.finetuning import train
from raybench.mechanisms.gated_training import fit_gated, scaled_penalty
from raybench.mechanisms.gates import (
    channels_of,
    copy_masked_head,
    maps_and_features,
    no_channels,
    over_maps,
    unrelated,
)
from raybench.registry import CLASS, METHODS, RETAIN
from raybench.space import at_least, nuisance, scientific
from raybench.task import UnlearningTask
from raybench.training import Trained, TrainingJob

MILESTONES = (16 / 30, 26 / 30)  # epochs 16 and 26, where the official scheduler drops the rate


@dataclass(frozen=True)
class ErmTraining:
    """Own training of the original model: every third epoch runs through the gates."""

    penalty: float | None = None
    """Weight lambda of the gates' penalty, which acts on the gates alone. None is the official 1e-3 times what this
    recipe's gated steps move less than the official ones (sums of learning rates): with 1e-3 as it is no gate of a
    small problem closes, and where none closes no channel is left to teach."""
    initial: float = 0.5
    """First value of every gate."""

    def __post_init__(self) -> None:
        if (self.penalty or 0.0) < 0.0 or not 0.0 < self.initial <= 1.0:
            raise ValueError(f"penalty must be >= 0 and initial in (0, 1], got {self.penalty} and {self.initial}")


@METHODS.training("erm_ktp", hparams=ErmTraining, label="ERM-KTP", paper="Lin et al., CVPR 2023")
def train_with_gates(job: TrainingJob) -> Trained:
    """Lin et al. 2023, section 3.2: in gated epochs the channels f of a sample of class y count f M[:, y] times.

    The loss of these epochs is cross-entropy + lambda R(M) (``gate_penalty``); after every step the gates are clipped.
    They learn by the recipe, as the weights do. Artefact ``gates`` [K, C]. ``ValueError`` for a model whose last stage
    has no channels.
    """
    hp: ErmTraining = job.hparams
    model = job.new_model()
    channels = channels_of(model, torch.zeros((2, *job.input_shape), device=job.device))
    if channels is None:
        raise ValueError("erm_ktp must gate channels of the last stage, the model has none; use a convolutional one")
    gates = nn.Parameter(torch.full((channels, job.num_classes), hp.initial, device=job.device))
    penalty = scaled_penalty(job) if hp.penalty is None else hp.penalty
    fit_gated(job, model, gates, penalty)
    return Trained(model, {"gates": gates.detach()})


@dataclass(frozen=True)
class ErmKtpHparams:
    """Defaults of the official code, which trains for up to 200 epochs."""

    tolerance: Annotated[float, scientific(FloatDistribution(0.0, 0.9))] = 0.0
    """Gate up to which a channel counts as unrelated to a class; 0 is the method, more lets more channels teach."""
    lr: Annotated[float, nuisance(FloatDistribution(1e-3, 0.3, log=True))] = 0.1
    """First learning rate of the student; a tenth of it from 16/30 of the run, a hundredth from 26/30."""
    epochs: Annotated[int, nuisance(IntDistribution(1, 30))] = 30
    """Passes over D_r. The official rate has dropped for the last time after 26, so that the rest changes little."""
    batch_size: int = 64
    """Samples a step (official: 256)."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """L2 penalty."""
    mask_maps: bool = True
    """Match the maps of the last stage after the mask; the official code matches them as the teacher has them, so
    that channels of the forgotten class are handed on."""

    def __post_init__(self) -> None:
        at_least(self, 0, "tolerance")
        at_least(self, 1, "batch_size")


@METHODS.register(
    "erm_ktp",
    hparams=ErmKtpHparams,
    label="ERM-KTP",
    paper="Lin et al., CVPR 2023",
    needs={RETAIN},
    scope={CLASS},
    tiny={"epochs": 2},
    training="erm_ktp",
    fresh=True,
    skip=lambda facts, hp: no_channels(facts),
    complexity="E N_r",
    batch_norm="fresh",
)
def erm_ktp(task: UnlearningTask, hp: ErmKtpHparams) -> nn.Module:
    """Lin, Zhang, Chen, Li and Lin 2023 (CVPR), section 3.3, knowledge-level transfer from the gated original.

    k_j = 1 for the channels j of the last stage whose gates M[j, c] to every forget class c are 0 (``unrelated``). A
    new network gets the original's head, without the columns of masked channels and with rows and biases of the forget
    classes at zero, frozen; the rest learns, without labels, to minimise MSE(f0, k f0_o) + MSE(f1, f1_o) on D_r, f0 the
    maps of the last stage, f1 what the head reads, the original's from its masked maps. Forget logits are therefore 0,
    not minus infinity. Batch norm starts anew and trains; the original's is read. Reports ``channels_kept``, their
    share; 0 means that nothing was left to teach. Cost: epochs x |D_r| sample passes and as many forward passes.

    Deviations:
        - maps are matched after the mask, as the method is described; ``mask_maps: false`` is the official code.
        - the original teaches in evaluation mode; the official code leaves it in training mode, so that its batch norm
          goes on moving.
        - where hidden layers stand between last stage and head, the head has no columns that belong to channels: then
          none is masked, the mask acts through f1 alone. A dense last stage has its units for channels.
        - the official scheduler begins after epoch 5 of 200 and drops twice by epoch 26; here a run is 30 epochs, and
          the drops stand at the same shares of shorter runs.
        - the original is trained by the problem's recipe (official: 200 epochs at 0.1), and the penalty's default makes
          up for that (``ErmTraining.penalty``).
    """
    gates = task.artefacts.get("gates")
    if gates is None or gates.shape[1] != task.num_classes:
        raise ValueError("erm_ktp must get gates [channels, classes] of its own training; train the original so")
    keep = unrelated(gates, task.forget_classes, hp.tolerance).float()
    teacher = task.model.requires_grad_(False).eval()
    student = task.new_model()
    copy_masked_head(teacher.head, student.head, keep, task.forget_classes)  # type: ignore[arg-type]

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        with torch.no_grad():
            wanted_maps, wanted = maps_and_features(teacher, batch[0], keep)
            if hp.mask_maps:
                wanted_maps = wanted_maps * over_maps(keep, wanted_maps)
        maps, features = maps_and_features(model, batch[0], torch.ones_like(keep))
        return (maps - wanted_maps).square().flatten(1).mean(1) + (features - wanted).square().mean(1)

    task.report({"channels_kept": float(keep.mean())})
    return train(task, student, task.retain, hp, loss=loss, changes={"schedule": "step", "milestones": MILESTONES})
