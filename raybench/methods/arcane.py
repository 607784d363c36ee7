"""ARCANE: a one-class network for every class, so that a deletion retrains one of them from a saved state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from raybench.data import Batch, Split
from raybench.mechanisms.one_class import OneClass, OneClassEnsemble
from raybench.mechanisms.sharding import Retrained, assign, retrain_slices, train_slices
from raybench.registry import METHODS, RETAIN, NoParameters
from raybench.task import UnlearningTask
from raybench.training import Trained, TrainingJob, own_recipe

PAPER = "Yan et al., IJCAI 2022"


@dataclass(frozen=True)
class ArcaneTraining:
    """Own training of the original ensemble: our reading, since the paper gives no pseudo-code."""

    states: int = 5
    """Saved states of each class's network, and slices in which its samples arrive. Each state is a whole network, so
    K times as many are stored (2.2 GB for resnet18 and 10 classes)."""
    ratio: float = 1.0
    """Share of each class's samples that is trained on, drawn at random (the paper's representative subset)."""
    lr: float = 1e-4
    """Learning rate of Adam, Deep SVDD's; ten times more and small networks collapse onto their centres."""
    weight_decay: float = 1e-6
    """L2 penalty, Deep SVDD's."""
    optimiser: Literal["adam"] = "adam"
    """Update rule."""

    def __post_init__(self) -> None:
        if self.states < 1 or not 0.0 < self.ratio <= 1.0:
            raise ValueError(f"states must be at least 1, ratio in (0, 1], got {self.states} and {self.ratio}")


def make_network(build: Callable[[], nn.Module], hp: ArcaneTraining) -> OneClassEnsemble:
    """The untrained ensemble: one network of the problem's architecture per class, its head as wide as ever."""
    first = build()
    classes: int = first.head.out_features  # type: ignore[assignment, union-attr]
    bodies = [first, *(build() for _ in range(classes - 1))]
    return OneClassEnsemble([OneClass(body, classes) for body in bodies])


def distances(model: nn.Module, batch: Batch) -> Tensor:
    """Squared distances [n] to the centre: the loss of a one-class network."""
    losses: Tensor = model(batch[0])
    return losses


def begin(member: nn.Module, split: Split) -> None:
    """The centre, from the samples that arrive first: no later state depends on a sample that came after it."""
    assert isinstance(member, OneClass)
    member.set_centre(split)


@METHODS.training(
    "arcane", hparams=ArcaneTraining, network=make_network, label="ARCANE", paper="Yan et al., IJCAI 2022"
)
def train_one_class_networks(job: TrainingJob) -> Trained:
    """Yan et al. 2022, section 4, in our reading: network c learns mean |phi_c(x) - o_c|^2 on the samples of class c.

    The samples of a class arrive in ``states`` slices, as SISA's; the state before each is saved. Artefacts: those of
    ``train_slices`` (shard: the class), ``lr`` and ``weight_decay``.
    """
    hp: ArcaneTraining = job.hparams
    labels = job.train.targets
    shard, slice_ = torch.full_like(labels, -1), torch.zeros_like(labels)
    for c in range(job.num_classes):
        own = (labels == c).nonzero().flatten()
        order = torch.randperm(len(own), generator=job.generator, device=job.device)
        own = own[order[: max(round(hp.ratio * len(own)), min(len(own), 1))]]
        shard[own] = c
        slices = min(hp.states, max(len(own), 1))
        slice_[own] = assign(len(own), 1, slices, job.generator)[1] if len(own) else own
    bodies = iter([job.new_model(job.seed + c) for c in range(job.num_classes)])
    ensemble = make_network(lambda: next(bodies), hp).to(job.device)
    recipe = own_recipe(job.recipe, hp)
    artefacts = train_slices(job, list(ensemble.members), shard, slice_, hp.states, recipe, loss=distances, begin=begin)
    for c in range(job.num_classes):
        ensemble.finish(c, job.train.subset((shard == c).nonzero().flatten()))
    artefacts |= {name: torch.tensor(getattr(hp, name), dtype=torch.float64) for name in ("lr", "weight_decay")}
    return Trained(ensemble, artefacts)


@METHODS.register(
    "arcane",
    label="ARCANE",
    paper=PAPER,
    needs={RETAIN},
    training="arcane",
    predictor=True,
    complexity="E N / K per sample",
    batch_norm="move",
)
def arcane(task: UnlearningTask, hp: NoParameters) -> nn.Module:
    """Yan et al. 2022, section 4, our reading: retrain the one-class networks of the classes that a deletion touches.

    Each of them goes back to the state before the first slice that holds a deleted sample and trains on from there
    with random numbers as before, so that the result is, bit for bit on one device, what the original training would
    have given without D_f, whatever the unlearn seed. The other networks stay as they are, and so do their scores
    (-|phi_c(x) - o_c|^2 / r_c^2; the largest wins). A class that loses all its samples loses its network, for nothing:
    its logit then lies 10 nats below the lowest of the others. Reports ``shards_retrained`` (classes) and
    ``slices_retrained``. Batch norm (without scale and shift) trains, its buffers are part of the states.
    Cost of one random sample: E N / K (2/3 + 1/(3R)) sample passes on average, with R states.

    Deviations:
        - the paper gives neither pseudo-code nor, as far as we found, code: networks, loss, scores and settings are
          those of Deep SVDD (Ruff et al. 2018) on the problem's architecture without biases. Its accuracy is below a
          K-way network's, for scores of networks that never met are not calibrated.
        - the representative subset is a random share, all by default: a choice that looks at the data would carry
          what it saw of a deleted sample into the others.
        - samples arrive in random order; the paper puts those likely to be deleted last, which takes knowing them.
        - the centre o_c comes from the first slice only (Deep SVDD: all samples), so that a saved state depends on no
          later sample; r_c^2 is the 95th percentile of the remaining samples' distances, taken anew.
        - every slice is a run of its own (Adam starts anew), with the epochs of SISA's slices.
    """
    ensemble, saved = task.model, task.artefacts
    if "lr" not in saved or not isinstance(ensemble, OneClassEnsemble):
        raise ValueError("arcane must get the networks of its own training, got another original; train it with arcane")

    def finish(count: int, done: Retrained) -> None:
        ensemble.finish(done.shard, done.left)
        task.checkpoint(ensemble, count)

    settings = ArcaneTraining(lr=float(saved["lr"]), weight_decay=float(saved["weight_decay"]))
    retrain_slices(
        task,
        list(ensemble.members),
        own_recipe(task.recipe, settings),
        loss=distances,
        begin=begin,
        after_shard=finish,
    )
    return ensemble
