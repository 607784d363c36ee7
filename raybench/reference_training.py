"""What a reference model is trained on, how, from which seed - its order - and the training itself, by the clock."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from raybench.content_store import state_of
from raybench.data import Split
from raybench.device_memory import reset_peak
from raybench.distributed import Checkpoints, fit_shared
from raybench.passes import Clock, PassCounter, warm_up
from raybench.problem import Problem
from raybench.registry import TRAININGS
from raybench.seeding import content_hash, derive_seed, seeded_globals, torch_generator
from raybench.space import resolve
from raybench.spec import CLEAN, PROTOCOL, SHADOW, STANDARD, Training
from raybench.training import Trained, TrainingJob, make_recipe, train_standard

ORIGINAL, RETRAINED = "original", "retrained"
WARMUP_SAMPLES = 32


@dataclass(frozen=True)
class Order:
    """A reference model to be. ``kind`` is ORIGINAL, RETRAINED, CLEAN or SHADOW, ``index`` which of them."""

    problem: Problem
    kind: str
    index: int
    training: Training
    data: Split
    digest: str  # of the data
    seed: int

    @property
    def workers(self) -> int:
        """How many processes share the training. Own trainings are code of their own and stay in one."""
        return self.problem.spec.train_workers if self.training.kind == STANDARD else 1

    @cached_property
    def key(self) -> str:
        """Hash of everything that decides the weights."""
        spec = self.problem.spec
        identity: dict[str, Any] = {
            "protocol": PROTOCOL,
            "model": [spec.network, spec.versions.get("model")],
            "recipe": spec.recipe,
            "training": self.training,
            "data": self.digest,
            "seed": self.seed,
            "threads": spec.threads,
            "device_type": spec.device_type,
        }
        if self.workers > 1:  # equal up to rounding, and rounding decides the last bits
            identity["train_workers"] = self.workers
        return content_hash(identity, 32)


def original(problem: Problem, index: int, training: Training | None = None) -> Order:
    """An original model: on all of the training split, standard or by an own training."""
    words = (index,) if index else ()
    seed = derive_seed("original", problem.spec.train_seed, *words)
    data = problem.splits["train"]
    return Order(problem, ORIGINAL, index, training or Training(), data, problem.train_digest, seed)


def retrained(problem: Problem, index: int, training: Training | None = None) -> Order:
    """A retrained model: the standard recipe on the retain set, new weights."""
    seed = derive_seed("retrained", problem.spec.train_seed, index)
    return Order(problem, RETRAINED, index, Training(), problem.splits["retain"], problem.retain_digest, seed)


def clean(problem: Problem, index: int, training: Training | None = None) -> Order:
    """A clean model: the standard recipe on the training split as it was before the scenario changed it."""
    assert problem.clean is not None
    seed = derive_seed("clean", problem.spec.train_seed, index)
    return Order(problem, CLEAN, index, Training(), problem.clean, problem.clean_digest, seed)


def shadow(problem: Problem, index: int, training: Training | None = None) -> Order:
    """A shadow model: the standard recipe on a random half of the training split (``Problem.half``)."""
    data = problem.splits["train"].subset(problem.half(index).nonzero().squeeze(1))
    digest = content_hash([problem.train_digest, "half", index])
    seed = derive_seed("shadow", problem.spec.train_seed, index)
    return Order(problem, SHADOW, index, Training(), data, digest, seed)


ORDERS: Mapping[str, Callable[[Problem, int, Training | None], Order]] = {
    ORIGINAL: original,
    RETRAINED: retrained,
    CLEAN: clean,
    SHADOW: shadow,
}


def train_order(order: Order, checkpoints: Checkpoints | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Train the model of an order: its tensors for the store (``model.*``, ``artefacts.*``) and the record of its cost.

    With ``checkpoints`` this process is one of the default group of ``torch.distributed``, all of which make this call;
    the training goes on from the last one. Seconds are then those of one process, what else it cost is summed.
    """
    problem, training, seed = order.problem, order.training, order.seed
    device = problem.splits["train"].images.device
    with seeded_globals(0):
        scratch = problem.build().to(device)
    passes = PassCounter(scratch, problem.facts.input_shape)

    def build() -> nn.Module:
        return passes.track(problem.build())

    entry = TRAININGS[training.kind] if training.kind != STANDARD else None
    generator = torch_generator("training", seed, device=device)
    job = TrainingJob(
        train=order.data.private(torch_generator("order", seed, device=device)),
        recipe=make_recipe(problem.spec.recipe),
        hparams=resolve(entry.hparams, training.hparams, training.kind) if entry else None,
        seed=seed,
        build=build,
        num_classes=problem.facts.num_classes,
        input_shape=problem.facts.input_shape,
        generator=generator,
        device=device,
        loss=problem.kind.loss(generator),
    )
    warm_up(scratch, first_images(problem))
    clock = Clock(device)
    started_at = time.time()
    if device.type == "cuda":
        reset_peak()
    clock.start()
    if checkpoints is not None:
        trained, cost = _share(job, checkpoints, clock, passes)
    else:
        trained = entry.fn(job) if entry else train_standard(job)
        clock.stop()
        cost = [clock.wall_s, clock.cpu_s, passes.forward, passes.backward]
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    tensors = {f"model.{n}": t for n, t in state_of(trained.model).items()}
    tensors |= {f"artefacts.{n}": t for n, t in trained.artefacts.items()}
    return tensors, {
        "identity": order.key,
        **dict(zip(("train_s", "cpu_s", "forward", "backward"), cost, strict=True)),
        "peak_memory": peak,
        "artefact_bytes": trained.artefact_bytes,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "made_on": platform.node(),
        "started_at": started_at,
    }


def _share(
    job: TrainingJob, checkpoints: Checkpoints, clock: Clock, passes: PassCounter
) -> tuple[Trained, list[float]]:
    """The standard training by a group of processes, and what it cost them."""
    world = dist.get_world_size()

    def spent() -> list[float]:
        with clock.paused():
            return [clock.wall_s / world, clock.cpu_s, passes.forward, passes.backward]

    model = job.new_model()
    with seeded_globals(job.seed + 1):
        cost = fit_shared(model, job.train, job.recipe, seed=job.seed, checkpoints=checkpoints, spent=spent)
    clock.stop()
    return Trained(model), cost


def first_images(problem: Problem) -> Tensor:
    """A few retained images, to warm up with."""
    split = problem.splits["retain"]
    return split.subset(torch.arange(min(WARMUP_SAMPLES, len(split)))).tensors()[0]
