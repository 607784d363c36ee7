"""SISA: sharded, isolated, sliced, aggregated training, so that a deletion retrains a part only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from raybench.mechanisms.sharding import Aggregate, Ensemble, Retrained, assign, retrain_slices, train_slices
from raybench.registry import METHODS, RETAIN, NoParameters
from raybench.task import UnlearningTask
from raybench.training import Trained, TrainingJob


@dataclass(frozen=True)
class SisaTraining:
    """Own training of the original ensemble. The paper tries 1 to 50 shards and 1 to 20 slices."""

    shards: int = 5
    """Disjoint parts of the training split, with a model each. Accuracy falls with it, and so does the cost of a
    deletion, as long as the request leaves whole shards alone."""
    slices: int = 1
    """Steps in which a shard's data arrive (the official code's default). Every slice of every shard stores a
    checkpoint."""
    aggregate: Aggregate = "vote"
    """Majority vote of the labels (the paper's default), or the mean of the probabilities (better on harder tasks)."""
    weights: Literal["uniform", "proportional"] = "uniform"
    """What a member weighs: 1, or the samples it was trained on."""

    def __post_init__(self) -> None:
        for name in ("shards", "slices"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def make_ensemble(build: Callable[[], nn.Module], hp: SisaTraining) -> Ensemble:
    """The untrained ensemble: ``hp.shards`` networks of the problem's architecture."""
    return Ensemble([build() for _ in range(hp.shards)], hp.aggregate)


@METHODS.training("sisa", hparams=SisaTraining, network=make_ensemble, label="SISA", paper="arXiv:1912.03817")
def train_shards(job: TrainingJob) -> Trained:
    """Bourtoule et al. 2021, section IV: each shard's model trains on slices 1..r for e_r epochs, r = 1..R.

    Artefacts: those of ``train_slices``, and whether weights are ``proportional``.
    """
    hp: SisaTraining = job.hparams
    shard, slice_ = assign(len(job.train), hp.shards, hp.slices, job.generator)
    members = iter([job.new_model(job.seed + s) for s in range(hp.shards)])
    ensemble = make_ensemble(lambda: next(members), hp).to(job.device)
    artefacts = train_slices(job, list(ensemble.members), shard, slice_, hp.slices, job.recipe)
    artefacts["proportional"] = torch.tensor(hp.weights == "proportional")
    if hp.weights == "proportional":
        ensemble.weight.copy_(torch.bincount(shard, minlength=hp.shards))
    return Trained(ensemble, artefacts)


@METHODS.register(
    "sisa",
    label="SISA",
    paper="arXiv:1912.03817",
    needs={RETAIN},
    training="sisa",
    predictor=True,
    complexity="E N (2/3 + 1/(3R)) / S per sample",
    batch_norm="move",
)
def sisa(task: UnlearningTask, hp: NoParameters) -> nn.Module:
    """Bourtoule et al. 2021, section IV: retrain only what a deleted sample reached.

    In every shard that holds a sample of D_f the model goes back to the checkpoint before the first slice that holds
    one, and slices r*..R train again without D_f, in order and with random numbers as before: the result is, bit for
    bit on one device, what the original training would have given without D_f, so it does not depend on the unlearn
    seed. Reports ``shards_retrained`` and ``slices_retrained``. Class requests and large random ones touch every
    shard; then SISA costs what retraining does. Batch norm trains, its buffers are part of the checkpoints.
    Cost of one random sample: E N / S (2/3 + 1/(3R)) sample passes on average. Every retrained shard is a checkpoint
    for the harness's curves.

    Deviations:
        - every slice is a run of the recipe of its own: learning-rate schedule and momentum start anew. The official
          code trains at a constant rate, and keeps the momentum over slices unless it resumes from a checkpoint.
        - the weights before the first slice are stored too, and so is the state of the shuffling generator, so that
          retraining repeats the original run exactly; the official code starts a restored shard without a seed.
        - the official code's vote is an argmax of counts; here the shares of votes are smoothed by a hundredth of the
          mean probability, which parts ties and gives metrics a finite loss.
        - a shard that loses all its samples is put back to its first weights and has no vote.
        - the number of shards is 5 by default; the paper sweeps it and names none. Only uniform partitions.
    """
    ensemble, saved = task.model, task.artefacts
    if "shard" not in saved or not isinstance(ensemble, Ensemble):
        raise ValueError("sisa must get the shards of its own training, got another original; train it with kind sisa")

    def weigh(count: int, done: Retrained) -> None:
        left = len(done.left)
        ensemble.weight[done.shard] = left if bool(saved["proportional"]) else min(left, 1)
        task.checkpoint(ensemble, count)

    retrain_slices(task, list(ensemble.members), task.recipe, loss=task.loss, after_shard=weigh)
    return ensemble
