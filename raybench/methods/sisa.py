"""SISA: sharded, isolated, sliced, aggregated training, so that a deletion retrains a part only."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from raybench.mechanisms.sharding import Aggregate, Ensemble, assign, slice_epochs
from raybench.registry import METHODS, RETAIN, NoParameters
from raybench.seeding import seeded_globals
from raybench.task import UnlearningTask
from raybench.training import Trained, TrainingJob, fit


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

    Artefacts: ``shard`` and ``slice`` of every training sample [N], ``epochs`` e_r [R], the ``seed``, whether weights
    are ``proportional``, and per slice s/r the weights ``before/s/r/...`` and the state ``order/s/r`` of the generator
    that shuffles, both as they were when that slice began.
    """
    hp: SisaTraining = job.hparams
    shard, slice_ = assign(len(job.train), hp.shards, hp.slices, job.generator)
    epochs = slice_epochs(job.recipe.epochs, hp.slices)
    members = iter([job.new_model(job.seed + s) for s in range(hp.shards)])
    ensemble = make_ensemble(lambda: next(members), hp).to(job.device)
    artefacts = {"shard": shard, "slice": slice_, "epochs": torch.tensor(epochs), "seed": torch.tensor(job.seed)}
    artefacts["proportional"] = torch.tensor(hp.weights == "proportional")
    order = job.train.generator
    assert order is not None
    for s, member in enumerate(ensemble.members):
        for r in range(hp.slices):
            artefacts |= {f"before/{s}/{r}/{name}": t.clone() for name, t in member.state_dict().items()}
            artefacts[f"order/{s}/{r}"] = order.get_state()
            part = job.train.subset(((shard == s) & (slice_ <= r)).nonzero().flatten())
            dataclasses.replace(job, train=part).fit(member, dataclasses.replace(job.recipe, epochs=epochs[r]))
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
    shard, slice_, epochs = saved["shard"].cpu(), saved["slice"].cpu(), saved["epochs"].tolist()
    gone = task.forget_positions.cpu()
    positions, order = task.retain_positions.cpu().sort()  # the order in which the original training saw them
    retrained = 0
    touched = shard[gone].unique().tolist()
    for done, s in enumerate(touched, 1):
        first = int(slice_[gone[shard[gone] == s]].min())
        member = ensemble.members[s]
        member.load_state_dict(_checkpoint(saved, s, first))
        for r in range(first, len(epochs)):
            part = task.retain.subset(order[(shard[positions] == s) & (slice_[positions] <= r)])
            shuffle = torch.Generator(device=task.device)
            shuffle.set_state(saved[f"order/{s}/{r}"].cpu())
            recipe = dataclasses.replace(task.recipe, epochs=epochs[r])
            with seeded_globals(int(saved["seed"]) + 1):  # as the original training did
                fit(member, dataclasses.replace(part, generator=shuffle), recipe, loss=task.loss)
            retrained += 1
        left = int((shard[positions] == s).sum())
        ensemble.weight[s] = left if bool(saved["proportional"]) else min(left, 1)
        task.checkpoint(ensemble, done)
    task.report({"shards_retrained": len(touched), "slices_retrained": retrained})
    return ensemble


def _checkpoint(saved: Mapping[str, Tensor], s: int, r: int) -> dict[str, Tensor]:
    """The weights of shard ``s`` as they were when its slice ``r`` began."""
    head = f"before/{s}/{r}/"
    return {name[len(head) :]: t for name, t in saved.items() if name.startswith(head)}
