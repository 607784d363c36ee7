"""The warm process around ``run_trial``: data, models and shared values stay in it from trial to trial.

The same ``TrialRunner`` serves the pool's actors (references, finals) and Tune's trainables (searches).
"""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch

from raybench.cluster.aggregator import wait_for
from raybench.cluster.lease import ClusterLease
from raybench.device_memory import CONTEXT_BYTES, limit_memory
from raybench.ledger import MEASURE, Request
from raybench.measuring import measure_trial, receipt
from raybench.spec import TrialSpec
from raybench.trial import OUT_OF_MEMORY, run_trial
from raybench.workshop import Placement, Settings, Workshop, WrongDevice


@dataclass(frozen=True)
class Kit:
    """What a worker needs: the run's settings, handles of its two service actors, its share of a GPU, and whether
    it has its device to itself.

    ``last``: a trial that runs out of memory here is a failed row. Elsewhere it is handed back, to be tried once more
    with a node, and a GPU, to itself.
    """

    settings: Settings
    aggregator: Any
    coordinator: Any
    gpu: float = 0.0
    exclusive: bool = False
    last: bool = False

    def with_share(self, gpu: float) -> Kit:
        """For a worker with a share of its own; a whole GPU is its own device."""
        return replace(self, gpu=gpu, exclusive=self.exclusive or gpu >= 1)


@dataclass(frozen=True)
class Outcome:
    """What came of a request: its durable row, or why this worker hands it back; ``memory``: it needs more."""

    row: dict[str, Any] | None
    handed_back: str = ""
    memory: bool = False


class TrialRunner:
    """Runs requests in this process. A row is durable before it is returned.

    Errors that people can mend leave as ``UserError`` (no plug-in of that name here, results folder full).
    """

    def __init__(self, kit: Kit) -> None:
        self._kit = kit
        self._shop: Workshop | None = None
        self._broken = False

    def run(self, request: Mapping[str, Any]) -> Outcome:
        """Run one request, given as plain values."""
        if self._broken:
            os._exit(1)  # only a new process is cured; pool and searcher replace a worker that died
        shop, trial = self._workshop(), Request.from_dict(request)
        self._limit(trial.spec, shop)
        try:
            if MEASURE in trial.context:
                records = measure_trial(trial.spec, trial.context, shop)
                wait_for(self._kit.aggregator.append_metrics.remote(records))
                return Outcome(receipt(trial.spec))
            row = run_trial(trial.spec, trial.context, shop)
        except WrongDevice as wrong:
            return Outcome(None, str(wrong))
        if torch.cuda.is_initialized():
            self._tidy()
        reason = str(row.get("reason") or "")
        if row["status"] == "failed" and reason.startswith(OUT_OF_MEMORY) and not self._kit.last:
            return Outcome(None, reason, memory=True)
        wait_for(self._kit.aggregator.append.remote([row]))
        row.pop("series", None)  # on storage by now; the driver needs the row only
        return Outcome(row)

    def _end(self, row: dict[str, Any]) -> None:
        """For the watchdog: the driver finds the row when it hears that this worker died."""
        try:
            wait_for(self._kit.aggregator.append.remote([row]))
        finally:
            os._exit(1)

    def _limit(self, spec: TrialSpec, shop: Workshop) -> None:
        """Ray packs trials and limits nothing: hold this process to its share of the GPU."""
        if 0 < self._kit.gpu < 1 and torch.cuda.is_available():
            known = shop.footprints.get(spec)
            limit_memory(self._kit.gpu, CONTEXT_BYTES if known is None else known.context)

    def _tidy(self) -> None:
        """Free the device between trials. An error that a trial left on it (a failed assertion in a kernel) stays for
        as long as the process lives, and would fail every later trial: this process takes none any more."""
        gc.collect()
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError:
            self._broken = True

    def _workshop(self) -> Workshop:
        """Made at the first request and not in ``__init__``, so that what goes wrong is that request's error and
        not a dead actor."""
        if self._shop is None:
            ids = ray.get_gpu_ids()
            if not ids:
                os.environ["CUDA_VISIBLE_DEVICES"] = ""  # num_gpus=0 does not hide the node's GPUs
            placement = Placement(
                device_ids=",".join(str(i) for i in ids),
                ray_version=ray.__version__,
                exclusive=self._kit.exclusive,
                node=node_name(),
            )
            self._shop = Workshop(self._kit.settings, ClusterLease(self._kit.coordinator), placement)
            self._shop.end_process = self._end
        return self._shop


class TrialActor:
    """A ``TrialRunner`` as an actor of the pool."""

    def __init__(self, kit: Kit) -> None:
        self._runner = TrialRunner(kit)

    def ready(self) -> None:
        """Returns as soon as the process runs."""

    def run(self, request: Mapping[str, Any]) -> Outcome:
        """See ``TrialRunner.run``."""
        return self._runner.run(request)


def node_name(node_id: str | None = None) -> str:
    """Name of a node (default: of this process's): what ``ray start --node-name`` says, else its host name."""
    wanted = node_id or ray.get_runtime_context().get_node_id()
    node = next(n for n in ray.nodes() if n["NodeID"] == wanted)
    named = node.get("NodeName") or node["NodeManagerAddress"]
    return str(node["NodeManagerHostname"] if named == node["NodeManagerAddress"] else named)
