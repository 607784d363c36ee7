"""The one place that calls ``ray.init``: a cluster that is there, or a quiet local Ray; and how trials fit on it."""

from __future__ import annotations

import logging
import math
import os
import secrets
import socket
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import torch
from ray._private import services

from raybench.cluster.aggregator import last_line
from raybench.cluster.probes import FREE_GPU_S, check_nodes, probe_cuda, smallest_gpu
from raybench.errors import UserError
from raybench.resources import ACCELERATOR
from raybench.version import PACKAGE

SILENT: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
GROW_S = 900.0  # a cloud brings a GPU node in minutes
OBJECT_STORE_BYTES = 200 * 2**20  # trials read data and models from disk; Ray's default takes 30 % of the memory

ANSWER_S = 10.0


@dataclass(frozen=True)
class Fit:
    """What a trial takes on this cluster, how many run at once, and what people should know of it."""

    resources: dict[str, float]
    slots: int
    note: str = ""


@dataclass
class Session:
    """A connection to a cluster. ``local``: this process started it. ``cap``: at most so many trials at once.
    ``namespace`` holds this run's named actors and nobody else's."""

    local: bool
    cap: int | None = None
    mine: bool = True
    namespace: str = field(default_factory=lambda: f"raybench-{uuid.uuid4().hex[:12]}")

    def __post_init__(self) -> None:
        self.node_id: str = ray.get_runtime_context().get_node_id()

    @classmethod
    def start(
        cls, slots: int | None = None, resources: Mapping[str, float] | None = None, gpus: float | None = None
    ) -> Session:
        """A quiet local Ray with room for ``slots`` trials of ``resources`` (default: one per core). ``gpus``: how
        many GPUs it believes to have (default: those it finds). Where this process has called ``ray.init`` already,
        that session is used and left open."""
        cap = _checked(slots)
        if ray.is_initialized():
            return cls(local=False, cap=cap, mine=False)
        cpu = float((resources or {}).get("cpu", 1.0))
        _own_token()
        try:
            with _workers_import_what_i_import():
                ray.init(
                    address="local",
                    num_cpus=None if slots is None else math.ceil(slots * cpu),
                    num_gpus=gpus,
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    **SILENT,
                )
        except Exception as error:  # Ray's own type for a node that does not answer within 30 s
            raise UserError(
                f"Ray must start on this machine, it did not ({last_line(error)}); try again when the machine is less "
                "busy, or leave Ray out with --serial"
            ) from error
        return cls(local=True, cap=cap)

    @classmethod
    def connect(cls, address: str = "auto", slots: int | None = None) -> Session:
        """Join the cluster at ``address``: ``auto`` or ``host:port``. ``slots``: trials at once (default: what
        fits). ``UserError`` where there is none."""
        cap = _checked(slots)
        if ray.is_initialized():
            return cls(local=False, cap=cap, mine=False)
        _join(address)
        return cls(local=False, cap=cap)

    def nodes(self) -> list[dict[str, Any]]:
        """Alive nodes, as Ray describes them."""
        return [node for node in ray.nodes() if node["Alive"]]

    def resources(self) -> dict[str, float]:
        """CPUs and GPUs of the cluster: as it is, or as it may grow where an autoscaler says so."""
        grown = _grown() or {}
        alive = ray.cluster_resources()
        return {key: float(max(alive.get(key, 0.0), grown.get(key, 0.0))) for key in ("CPU", "GPU")}

    def fit(self, resources: Mapping[str, float]) -> Fit:
        """Resolve the resources of an experiment (cpu, gpu, others by Ray's names) on this cluster; ``UserError`` if no
        trial fits.

        A GPU share is dropped where the cluster has no GPU, and with it the type of GPU; it is kept where it has some
        (so that packing is the same) even if torch cannot use them.
        """
        cpu, gpu = float(resources.get("cpu", 1.0)), float(resources.get("gpu", 0.0))
        if cpu <= 0 or gpu < 0:
            raise UserError(f"resources must be cpu above 0 and gpu from 0, got {cpu:g} and {gpu:g}; mend the spec")
        if gpu > 1 and gpu != int(gpu):
            raise UserError(f"resources.gpu must be at most 1 or a whole number, got {gpu:g}; round it")
        note, custom = "", custom_of(resources)
        if gpu and self.resources()["GPU"] == 0:
            note, gpu = f"the cluster has no GPU: trials run on CPU, resources.gpu {gpu:g} is dropped", 0.0
            custom = {name: amount for name, amount in custom.items() if not name.startswith(ACCELERATOR)}
        wanted = {"cpu": cpu, "gpu": gpu, **custom}
        slots = self.slots(wanted)
        if slots == 0:
            asked = ", ".join(f"{name}: {amount:g}" for name, amount in wanted.items())
            raise UserError(
                f"a trial must fit on one node, got resources {{{asked}}} and nodes with {self._describe(custom)}; "
                "ask for less in the spec, or add a node"
            )
        return Fit(wanted, slots, note)

    def device_type(self, device: str, resources: Mapping[str, float]) -> str:
        """``cpu`` or ``cuda`` for ``device: auto | cpu | cuda`` of a spec. CUDA if trials hold a share of a GPU and
        torch sees it on the nodes; ``UserError`` where it is demanded and that is not so."""
        wanted = self.fit(resources).resources
        gpu = wanted["gpu"]
        if device == "cpu" or (device == "auto" and gpu == 0):
            return "cpu"
        if gpu == 0:
            raise UserError(
                f"device cuda needs a cluster with GPUs and a share of one per trial, got {self.resources()['GPU']:g} "
                f"GPUs and resources.gpu {resources.get('gpu', 0.0):g}; set resources.gpu, or ask for device: auto"
            )
        if probe_cuda(gpu, FREE_GPU_S if _grown() is None else GROW_S, custom_of(wanted)):
            return "cuda"
        if device == "cuda":
            raise UserError(
                f"device cuda needs a torch that can use the GPUs of the nodes, torch {torch.__version__} there "
                "cannot; install one with CUDA, or ask for device: auto"
            )
        return "cpu"

    def slots(self, resources: Mapping[str, float]) -> int:
        """How many trials of these resources run at once; counted node by node, GPU shares device by device."""
        found = sum(fits(node["Resources"], resources) for node in self.nodes())
        grown = _grown()
        if grown:  # an autoscaling cluster: a node may be there only once trials wait for it
            found = max(found, fits(grown, resources))
        return found if self.cap is None else min(found, self.cap)

    def gpus(self, resources: Mapping[str, float]) -> float:
        """How many GPUs the nodes have on which such a trial may run; as many as an autoscaler may bring, if more."""
        counts = [node["Resources"].get("GPU", 0.0) for node in self.nodes() if fits(node["Resources"], resources)]
        return max(float(sum(counts)), float((_grown() or {}).get("GPU", 0.0)))

    def gpu_bytes(self, resources: Mapping[str, float]) -> int:
        """Bytes of the smallest GPU on which such a trial may run; 0 where torch sees none."""
        nodes = [n for n in self.nodes() if n["Resources"].get("GPU", 0.0) and fits(n["Resources"], resources)]
        return smallest_gpu([node["NodeID"] for node in nodes])

    def check(self, results: str, store: str) -> None:
        """``UserError`` unless every node that may run trials runs this raybench and sees both folders."""
        nodes = [n for n in self.nodes() if n["Resources"].get("CPU", 0) > 0 and n["NodeID"] != self.node_id]
        if nodes:
            check_nodes([n["NodeID"] for n in nodes], results, store)

    def close(self) -> None:
        """Leave the cluster; a local one ends."""
        if self.mine:
            ray.shutdown()

    def _describe(self, custom: Iterable[str]) -> str:
        """The nodes with what was asked for of theirs, and the types of their GPUs."""
        found = []
        for node in (n["Resources"] for n in self.nodes()):
            names = [name for name in node if name in custom or name.startswith(ACCELERATOR)]
            others = "".join(f", {name}: {node[name]:g}" for name in sorted(names))
            found.append(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs{others}")
        return "; ".join(found)


def _checked(slots: int | None) -> int | None:
    if slots is not None and slots < 1:
        raise UserError(f"--slots must be at least 1, got {slots}; leave it out to use all there is")
    return slots


def _grown() -> Mapping[str, float] | None:
    """What an autoscaling cluster may grow to; None for one that stays as it is."""
    grown: Mapping[str, float] | None = ray._private.state.state.get_max_resources_from_cluster_config()
    return grown


def _join(address: str) -> None:
    if "://" in address:
        raise UserError(
            f"--address must be auto or host:port of a cluster that this machine belongs to, got {address}; "
            "from outside use: ray job submit --working-dir . -- python -m raybench run ..."
        )
    try:
        found = services.canonicalize_bootstrap_address(address)
        host, port = services.extract_ip_port(found)
        socket.create_connection((host, port), ANSWER_S).close()  # Ray itself would try and talk for minutes
        inside_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ  # the job says where the code is
        ray.init(address=found, runtime_env=None if inside_job else {"env_vars": {"PYTHONPATH": _paths()}}, **SILENT)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise UserError(
            f"--address must lead to a running Ray cluster, got {address} ({last_line(error)}); start one with "
            "ray start --head, or leave --address out"
        ) from error


def _own_token() -> None:
    """A local Ray turns token authentication on and would leave its new token readable for everyone."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    path = Path.home() / ".ray" / "auth_token"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return  # it is somebody's choice already
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_hex(32))


def _paths() -> str:
    """This process's import path: workers must find the same raybench and the plug-ins beside the caller."""

    mine = [str(PACKAGE.parent), *(os.path.abspath(p) for p in sys.path)]
    theirs = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    installed = (sys.prefix, sys.base_prefix)
    kept = [p for p in (*mine, *theirs) if p and os.path.isdir(p) and not p.startswith(installed)]
    return os.pathsep.join(dict.fromkeys(kept))


@contextmanager
def _workers_import_what_i_import() -> Iterator[None]:
    """Processes of a local Ray inherit the environment that it was started in."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = _paths()
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def fits(node: Mapping[str, float], wanted: Mapping[str, float]) -> int:
    """How many requests fit on a node; a share of a GPU cannot be put together from two devices."""
    margin = 1e-6
    found = int(node.get("CPU", 0.0) / wanted["cpu"] + margin)
    gpu = wanted.get("gpu", 0.0)
    if gpu >= 1:
        found = min(found, int(node.get("GPU", 0.0) / gpu + margin))
    elif gpu > 0:
        found = min(found, int(node.get("GPU", 0.0)) * int(1 / gpu + margin))
    for name, amount in custom_of(wanted).items():
        found = min(found, int(node.get(name, 0.0) / amount + margin))
    return found


def with_gpu(resources: Mapping[str, float], gpu: float) -> dict[str, float]:
    """The same with another share of a GPU; without one, the type of GPU does not matter."""
    kept = {name: amount for name, amount in resources.items() if gpu or not name.startswith(ACCELERATOR)}
    return {**kept, "gpu": gpu}


def custom_of(resources: Mapping[str, float]) -> dict[str, float]:
    """What Ray calls the custom resources among them: all but cpu and gpu."""
    return {name: amount for name, amount in resources.items() if name not in ("cpu", "gpu")}
