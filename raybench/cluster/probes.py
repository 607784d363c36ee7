"""What must hold on the nodes before anything runs: one Ray task per question and node, one clear line on failure."""

from __future__ import annotations

import platform
import uuid
from collections.abc import Mapping, Sequence

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raybench.cluster.aggregator import last_line
from raybench.cluster.trial_actor import node_name
from raybench.errors import UserError
from raybench.folder import open_folder
from raybench.version import __version__

PROBE_S = 120.0  # a node that does not answer a trivial task for so long will not run trials either
FREE_GPU_S = 60.0


def probe_cuda(gpu: float, wait_s: float = FREE_GPU_S, custom: Mapping[str, float] | None = None) -> bool:
    """Whether torch sees CUDA in a process that holds ``gpu`` GPUs and ``custom`` resources. ``UserError`` while all
    are taken (for ``wait_s`` seconds: an autoscaler needs minutes to bring the first one)."""
    reference = ray.remote(_cuda).options(num_cpus=0, num_gpus=gpu, resources=dict(custom or {})).remote()
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


def smallest_gpu(node_ids: Sequence[str]) -> int:
    """Bytes of the smallest GPU of these nodes, as torch sees them; 0 where it sees none."""
    found = []
    for node_id in node_ids:
        here = NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)
        options = {"num_cpus": 0, "max_calls": 1, "scheduling_strategy": here}  # its CUDA context ends with the process
        found.append(ray.remote(_device_bytes).options(**options).remote())
    return min((size for sizes in ray.get(found, timeout=PROBE_S) for size in sizes), default=0)


def _device_bytes() -> list[int]:
    return [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]


def versions() -> dict[str, str]:
    """What must be equal in driver and workers: results depend on it, or pickles do."""
    return {
        "raybench": __version__,
        "torch": torch.__version__,
        "Python": ".".join(platform.python_version_tuple()[:2]),
    }


def check_nodes(node_ids: Sequence[str], results: str, store: str) -> None:
    """``UserError`` unless raybench and torch are the driver's on every node, and both places are shared (paths and
    URLs alike): the node reads what the driver wrote there, and the driver what the node wrote."""
    token = uuid.uuid4().hex
    places = {"results": results, "store": store}
    folders = {kind: open_folder(where) for kind, where in places.items()}
    for folder in folders.values():
        folder.put(f".probe-{token}-driver", token.encode())
    try:
        _ask_nodes(node_ids, places, token)
    finally:
        for folder in folders.values():
            for who in ("driver", *node_ids):
                folder.delete(f".probe-{token}-{who}")


def _ask_nodes(node_ids: Sequence[str], places: dict[str, str], token: str) -> None:
    answers = {}
    for node_id in node_ids:
        here = NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)
        probe = ray.remote(_look).options(num_cpus=0, max_retries=1, scheduling_strategy=here)
        answers[node_id] = probe.remote(places, token, node_id)
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
        for kind, where in places.items():
            if kind not in unseen and open_folder(where).has(f".probe-{token}-{node_id}"):
                continue
            if unseen.get(kind):
                raise UserError(
                    f"the {kind} must be usable from all nodes, on node {name}: {unseen[kind]}; "
                    f"mend it there or give another place with --{kind}"
                )
            raise UserError(
                f"the {kind} folder must be shared by all nodes, got {where}, which node {name} does not share "
                f"with the driver's; give a path on shared storage, or an s3:// URL, with --{kind}"
            )


def _look(places: dict[str, str], token: str, node_id: str) -> tuple[dict[str, str], dict[str, str]]:
    """On a node: which places lack the driver's token, with what was wrong where something was. Leaves this node's own
    token in the others."""
    unseen = {}
    for kind, where in places.items():
        try:
            folder = open_folder(where)
            with folder.open(f".probe-{token}-driver") as file:
                seen = file.read() == token.encode()
            if seen:  # elsewhere nobody would clean it up
                folder.put(f".probe-{token}-{node_id}", token.encode())
            else:
                unseen[kind] = ""
        except FileNotFoundError:
            unseen[kind] = ""
        except UserError as error:  # not readable or writable here, no credentials, no package
            unseen[kind] = str(error)
    return unseen, versions()
