"""What one trial takes of a node, from a spec: CPUs, a share of a GPU, others by the names that Ray has for them."""

from __future__ import annotations

from raybench.errors import UserError
from raybench.spec_file import SpecFile

ACCELERATOR = "accelerator_type:"  # nodes with such a GPU have 1 of this in Ray, and each trial takes a trace of it
TRACE = 0.001
OWN = ("cpu", "gpu", "memory", "object_store_memory")  # Ray's own resources


def resources_of(spec: SpecFile) -> dict[str, float]:
    """What one trial takes: cpu, gpu (a whole one if it is measured), and others by the names that Ray has for them."""
    given = spec.resources
    gpu = 1.0 if is_measured(spec) else float(given.gpu or 0.0)
    if spec.devices == "each" and spec.device != "auto":
        raise UserError(f"devices: each needs device: auto, got {spec.device}; leave one of the two out")
    if _on_cuda(spec) and gpu <= 0:
        raise UserError(
            f"{_on_cuda(spec)} needs resources.gpu above 0, got 0; ask for a share such as 0.25, or for measured"
        )
    reserved = [name for name in given.custom if name.lower() in OWN or name.startswith(ACCELERATOR)]
    if reserved:
        raise UserError(
            f"resources.custom must name resources of your own nodes, got {reserved[0]}; give cpu, gpu and "
            "accelerator_type beside custom"
        )
    resources = {"cpu": 1.0 if given.cpu is None else given.cpu, "gpu": gpu, **given.custom}
    if given.accelerator_type is not None:
        if not gpu:
            raise UserError(
                f"resources.accelerator_type needs resources.gpu above 0, got {given.accelerator_type} and no GPU; "
                "ask for a share, or leave it out"
            )
        resources[ACCELERATOR + given.accelerator_type] = TRACE
    return resources


def is_measured(spec: SpecFile) -> bool:
    """Whether the share of a GPU is measured: where the spec says so, or asks for CUDA and for no share."""
    return spec.resources.gpu == "measured" or (spec.resources.gpu is None and bool(_on_cuda(spec)))


def _on_cuda(spec: SpecFile) -> str:
    """What in the spec asks for CUDA; empty where nothing does."""
    return "device: cuda" if spec.device == "cuda" else "devices: each" if spec.devices == "each" else ""
