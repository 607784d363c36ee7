"""One reference model trained by several processes: what each of them does, and how they start on one machine.

On a cluster Ray Train starts them (``raybench.cluster.shared``); ``--serial`` starts them here. The training itself,
and how it resumes, is ``raybench.distributed``.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessExitedException, spawn

from raybench.distributed import Checkpoints
from raybench.errors import UserError
from raybench.reference_training import ORDERS, Order, train_order
from raybench.references import KIND
from raybench.spec import ProblemSpec
from raybench.workshop import Settings, Workshop

TRIES = 3  # starts of a training whose processes die; each goes on from the last checkpoint


@dataclass(frozen=True)
class Commission:
    """An order with the settings of its run, as it travels to other processes."""

    settings: Settings
    problem: ProblemSpec
    kind: str
    index: int

    @classmethod
    def of(cls, settings: Settings, order: Order) -> Commission:
        """The commission of an order."""
        return cls(settings, order.problem.spec, order.kind, order.index)


def take_part(commission: Commission) -> None:
    """Train as one of the processes of the default group (``torch.distributed``); the first one stores the model.

    A CUDA process has chosen its device. Returns when the model is in the store.
    """
    torch.set_num_threads(commission.problem.threads)
    shop = Workshop(commission.settings)
    order = ORDERS[commission.kind](shop.problem(commission.problem), commission.index, None)
    checkpoints = Checkpoints(shop.store, order.key, shop.settings.checkpoint_s)
    tensors, record = train_order(order, checkpoints)
    if dist.get_rank() == 0:
        shop.store.put(KIND, order.key, tensors, record | {"train_workers": dist.get_world_size()})
        checkpoints.clear(commission.problem.recipe["epochs"])
    dist.barrier()


def train_here(settings: Settings, order: Order) -> None:
    """Train the model of an order by processes of this machine: on its CPU, or on one GPU each.

    They start again, from the last checkpoint, when one of them dies. ``UserError`` where there are too few GPUs.
    """
    cuda = order.problem.spec.device_type == "cuda"
    if cuda and torch.cuda.device_count() < order.workers:
        raise UserError(
            f"train_workers must not exceed the GPUs of this machine with --serial, got {order.workers} and "
            f"{torch.cuda.device_count()}; lower it, or run on a cluster"
        )
    commission = Commission.of(settings, order)
    for left in reversed(range(TRIES)):
        with tempfile.TemporaryDirectory(prefix="raybench-shared-") as folder:
            try:
                spawn(_process, (order.workers, f"file://{folder}/rendezvous", commission), nprocs=order.workers)
                return
            except ProcessExitedException as lost:  # killed; an exception in the training is another type
                if not left:
                    raise RuntimeError(f"a training process died in {TRIES} of {TRIES} tries ({lost})") from lost


def _process(rank: int, world: int, rendezvous: str, commission: Commission) -> None:
    cuda = commission.problem.device_type == "cuda"
    if cuda:
        torch.cuda.set_device(rank)
    dist.init_process_group("nccl" if cuda else "gloo", init_method=rendezvous, rank=rank, world_size=world)
    try:
        take_part(commission)
    finally:
        dist.destroy_process_group()
