"""L-CODEC: per deletion, Newton-update only the filters and units whose activations the sample's loss depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from optuna.distributions import FloatDistribution, IntDistribution
from torch import nn

from raybench.mechanisms.channel_removal import selected_channels, without_samples
from raybench.mechanisms.channels import gather, scatter
from raybench.mechanisms.class_turns import class_turns
from raybench.mechanisms.epoch_traces import EpochTraces, read_traces
from raybench.mechanisms.secant import removal_noise
from raybench.registry import FORGET, METHODS, VALIDATION
from raybench.space import at_least, nuisance, scientific
from raybench.task import UnlearningTask
from raybench.training import Trained, TrainingJob

IMAGES_A_PASS = 512
EPOCHS = ("before_last", "last")
CHECKPOINTS = 10


@METHODS.training("lcodec", label="Traces of two epochs", paper="CVPR 2022, Mehta et al.")
def train_with_traces(job: TrainingJob) -> Trained:
    """The standard training; bit for bit the standard weights. ``ValueError`` for a recipe of fewer than 2 epochs.

    Artefacts, for the last two epochs, by the qualified names of the parameters: ``<epoch>.gradients.<name>`` (the
    data gradient per sample, in train mode, along the epoch) and ``<epoch>.weights.<name>`` (at the epoch's end), and
    ``samples`` = n. Gradients are as the optimiser got them: after clipping, without weight decay.
    """
    model = job.new_model()
    traces = EpochTraces(job, model, EPOCHS)
    job.fit(model, before_step=traces.before_step, after_epoch=traces.after_epoch)
    return Trained(model, {**traces.tensors, "samples": torch.tensor(len(job.train))})


@dataclass(frozen=True)
class LcodecHparams:
    """Defaults: the official code's for CIFAR-10, but for ``max_updates`` (it removes 1000 samples, for hours)."""

    l2: Annotated[float, scientific(FloatDistribution(1e-4, 1.0, log=True))] = 0.01
    """lambda: added to the Hessian, and the strong convexity that the noise is made from. On few samples the noise is
    what hurts: it falls with n^2 lambda^3."""
    epsilon: Annotated[float, scientific(FloatDistribution(0.01, 1e6, log=True))] = 0.1
    """Noise of ``sekhari`` is 1 / epsilon. What it would certify needs a convex loss, so it is searched freely."""
    delta: float = 0.01
    """The other constant of the noise."""
    update: Literal["sekhari", "cr", "gradient"] = "sekhari"
    """(H + lambda I)^-1 g / (n - 1) with the Hessian of the rest and noise; (H_s + lambda I)^-1 g with the sample's
    own ("CR"); or plain ascent by ``lr``."""
    lr: float = 1.0
    """Step of ``gradient`` alone."""
    selection: Literal["foci", "first", "random", "one", "full"] = "foci"
    """Which channels move: those FOCI selects, the first of them, as many at random, one at random, or all."""
    perturbations: Annotated[int, nuisance(IntDistribution(100, 1000, log=True))] = 1000
    """M noisy copies of what is deleted; FOCI's seconds grow with the square."""
    noise: float = 0.1
    """Standard deviation of the copies, in normalised pixels."""
    samples_per_update: int = 1
    """Samples of one class that leave together (their code has that too); more are quicker and coarser."""
    max_updates: int | None = 20
    """Most updates of one request, so that it stays affordable, or no limit. The rest of D_f stays in the model and
    is reported as ``untouched``."""
    val_gap_skip: float = 0.05
    """An update that costs more validation accuracy than this is taken back: ``skipped``."""

    def __post_init__(self) -> None:
        whole = (self.perturbations, self.samples_per_update, 1 if self.max_updates is None else self.max_updates)
        if min(whole) < 1 or not self.l2 > 0.0 or not self.epsilon > 0.0 or not 0.0 < self.delta < 1.0:
            raise ValueError("perturbations, samples_per_update, max_updates must be >= 1, l2, epsilon > 0, delta < 1")
        at_least(self, 0, "noise", "lr", "val_gap_skip")


@METHODS.register(
    "lcodec",
    hparams=LcodecHparams,
    label="L-CODEC",
    paper="CVPR 2022, Mehta et al.",
    needs={FORGET, VALIDATION},
    training="lcodec",
    tiny={"perturbations": 20, "max_updates": 3, "epsilon": 1e5, "l2": 0.05},
    complexity="N_f (M forward + 2), no D_r",
    batch_norm="read",
)
def lcodec(task: UnlearningTask, hp: LcodecHparams) -> nn.Module:
    """Mehta, Pal, Singh, Ravi 2022, Algorithm 1 with L-FOCI (Section 4): w_S <- w_S + (H + lambda I)^-1 g_S / (n - 1).

    Per deletion: the losses and channel means of M noisy copies; S = the channels that FOCI selects; a Newton step on
    their slices with H = (n H_old - H_s) / (n - 1), H_old from the traces of the training, H_s from a small step on
    the sample; Gaussian noise; and back if validation accuracy fell by more than ``val_gap_skip``. A skipped sample
    stays in the model. Reports ``updated``, ``skipped`` and ``untouched`` samples, the mean numbers of selected
    ``channels`` and ``weights``, and ``noise_std``. Everything is in evaluation mode: batch norm is read.
    The noise certifies nothing for a network that is not convex, and on thousands (not tens of thousands) of samples
    the defaults' noise is so large that nearly every update is taken back; raise ``epsilon`` or ``l2``.
    Cost per update of m samples: M m forward passes, 2 m sample passes, |D_v| forward passes; FOCI's tables of M x M
    for each channel and round are seconds, but no passes (20 a round on a core for the 4,810 channels of resnet18).

    Deviations:
        - gradients and weights go by qualified names; the official code's keys are the layers' printed forms, so
          that layers of one shape overwrite each other.
        - the sample's Hessian uses the gradient after the small step; the official code compares the first gradient
          with itself, so that its sample's Hessian is zero.
        - traces are gradients per sample; the official code divides a sum of batch means by the number of samples, too
          small by the batch size, and H_old by its square. It also keeps a reference to the gradients, not a copy.
        - of m samples together the gradients and Hessians are summed, n - m are left, and the noise has m^2; the
          official code takes means and m = 1 throughout.
        - H is of rank two and solved as such, exactly; the official code makes and solves the full matrix. Its distance
          ||dw||_1 has 1e-6 added to each entry, ours has not.
        - equal losses share a rank, and where the loss does not vary at all the first channel is taken; the official
          code ranks ties by position. Neighbours are found by differences; its float32 products mistake near ones.
        - at most ``max_updates`` updates; the official code removes 1000 samples one by one, and draws another sample
          in place of a skipped one.
    """
    model, traces = task.model, read_traces(task, EPOCHS)
    n, parameters = int(task.artefacts["samples"]), dict(model.named_parameters())
    chosen = class_turns(task.forget.targets, hp.samples_per_update)[: hp.max_updates]
    accuracy, skipped, updated, numbers = _accuracy(task, model), 0, 0, []
    for step, group in enumerate(chosen, start=1):
        batch = task.forget.subset(group).tensors()
        channels = selected_channels(task, hp, batch)
        before = gather(parameters, channels)
        scatter(model, channels, without_samples(task, hp, batch, channels, traces, n))
        now = _accuracy(task, model)
        if not accuracy - now <= hp.val_gap_skip:
            scatter(model, channels, before)
            skipped += len(group)
        else:
            accuracy, updated = now, updated + len(group)
        numbers.append((float(len(channels)), float(len(before))))
        if step % -(-len(chosen) // CHECKPOINTS) == 0:
            task.checkpoint(model, step)
    mean = torch.tensor(numbers).mean(0)
    task.report({"updated": updated, "skipped": skipped, "untouched": len(task.forget) - updated - skipped})
    task.report({"channels": float(mean[0]), "weights": float(mean[1])})
    if hp.update == "sekhari":
        task.report({"noise_std": removal_noise(n, hp.l2, hp.epsilon, hp.delta, hp.samples_per_update)})
    return model


@torch.no_grad()
def _accuracy(task: UnlearningTask, model: nn.Module) -> float:
    hits = [(model(images).argmax(1) == labels).sum() for images, labels in task.validation.batches(IMAGES_A_PASS)]
    return float(torch.stack(hits).sum()) / len(task.validation)
