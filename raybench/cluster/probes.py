"""What must hold on the nodes before anything runs: one Ray task per question and node, one clear line on failure."""

from __future__ import annotations

import platform
import uuid
from collections.abc import Sequence
from pathlib import Path

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raybench.cluster.aggregator import last_line
from raybench.cluster.trial_actor import node_name
from raybench.errors import UserError
from raybench.version import __version__

PROBE_S = 120.0  # a node that does not answer a trivial task for so long will not run trials either
FREE_GPU_S = 60.0


def probe_cuda(gpu: float, wait_s: float = FREE_GPU_S) -> bool:
    """Whether torch sees CUDA in a process that holds ``gpu`` GPUs. ``UserError`` while all GPUs are taken (for
    ``wait_s`` seconds: an autoscaler needs minutes to bring the first one)."""
    reference = ray.remote(_cuda).options(num_cpus=0, num_gpus=gpu).remote()
    try:
        found: bool = ray.get(reference, timeout=wait_s)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(reference, force=True)
        raise UserError(
            f"the cluster must have resources.gpu {gpu:g} free, none was for {wait_s:.0f} s; wait for the other "
            "jobs, or ask for device: cpu"
        ) from None
    return found


def _cuda() -> bool:
    return torch.cuda.is_available()


def versions() -> dict[str, str]:
    """What must be equal in driver and workers: results depend on it, or pickles do."""
    return {
        "raybench": __version__,
        "torch": torch.__version__,
        "Python": ".".join(platform.python_version_tuple()[:2]),
    }


def check_nodes(node_ids: Sequence[str], results: str, store: str) -> None:
    """``UserError`` unless raybench and torch are the driver's on every node, and both folders are shared:
    the node reads what the driver wrote there, and the driver what the node wrote."""
    token = uuid.uuid4().hex
    folders = {"results": results, "store": store}
    paths = {name: Path(where) for name, where in folders.items() if "://" not in where}
    for path in paths.values():
        path.mkdir(parents=True, exist_ok=True)
        (path / f".probe-{token}").write_text(token)
    try:
        _ask_nodes(node_ids, paths, token)
    finally:
        for path in paths.values():
            for file in path.glob(f".probe-{token}*"):
                file.unlink(missing_ok=True)


def _ask_nodes(node_ids: Sequence[str], paths: dict[str, Path], token: str) -> None:
    asked = {name: str(path) for name, path in paths.items()}
    answers = {}
    for node_id in node_ids:
        here = NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)
        probe = ray.remote(_look).options(num_cpus=0, max_retries=1, scheduling_strategy=here)
        answers[node_id] = probe.remote(asked, token, node_id)
    for node_id, reference in answers.items():
        name = node_name(node_id)
        try:
            unseen, found = ray.get(reference, timeout=PROBE_S)
        except ray.exceptions.RayError as error:
            reason = last_line(error)
            raise UserError(
                f"every node must be able to run raybench, node {name} is not ({reason}); install the same raybench "
                "there, or submit the job with --working-dir"
            ) from error
        wrong = [f"{k} {found[k]} (here {v})" for k, v in versions().items() if found[k] != v]
        if wrong:
            raise UserError(f"every node must have the same versions, node {name} has {', '.join(wrong)}; align them")
        for kind, path in paths.items():
            if kind in unseen or not (path / f".probe-{token}-{node_id}").exists():
                raise UserError(
                    f"the {kind} folder must be shared by all nodes, got {path}, which node {name} does not share "
                    f"with the driver's; give a path on shared storage with --{kind}"
                )


def _look(folders: dict[str, str], token: str, node_id: str) -> tuple[list[str], dict[str, str]]:
    """On a node: which folders lack the driver's token. Leaves this node's own token in the others."""
    unseen = []
    for kind, where in folders.items():
        try:
            seen = (Path(where) / f".probe-{token}").read_text() == token
            if seen:  # elsewhere nobody would clean it up
                (Path(where) / f".probe-{token}-{node_id}").write_text(token)
        except OSError:
            seen = False  # not there, or not writable here: the driver says so
        if not seen:
            unseen.append(kind)
    return unseen, versions()
