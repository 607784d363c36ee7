"""One pass over each split, outputs cached, metrics computed from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from raybench.data import Split
from raybench.errors import MetricUnavailable
from raybench.outputs import MetricContext, Outputs, SplitOutputs
from raybench.registry import METRICS

BATCH_SIZE = 1024  # part of the protocol: another size may change the last bit of a logit
SEARCH_SPLITS = ("retain", "forget", "validation", "validation_forgotten")
FINAL_SPLITS = (*SEARCH_SPLITS, "test", "test_forgotten")


def splits_for(final: bool) -> tuple[str, ...]:
    """A search never sees the test set."""
    return FINAL_SPLITS if final else SEARCH_SPLITS


@torch.no_grad()  # not inference_mode: a metric may fit something on the logits, and inference tensors forbid that
def outputs_of(predictor: Callable[[Tensor], Tensor], splits: Mapping[str, Split], names: Iterable[str]) -> Outputs:
    """Logits of every named split that exists, on the CPU; modules are put in evaluation mode."""
    if isinstance(predictor, nn.Module):
        predictor.eval()
    found = {}
    for name in names:
        if name in splits:
            logits = [predictor(images).float() for images, _ in splits[name].batches(BATCH_SIZE)]
            empty = torch.empty(0, 0)
            found[name] = SplitOutputs(torch.cat(logits).cpu() if logits else empty, splits[name].targets.cpu())
    return Outputs(found)


def pack(outputs: Outputs) -> dict[str, Tensor]:
    """Outputs as named tensors, for safetensors files."""
    packed = {}
    for name in outputs:
        if outputs.has(name):
            packed[f"{name}.logits"], packed[f"{name}.labels"] = outputs[name].logits, outputs[name].labels
    return packed


def unpack(tensors: Mapping[str, Tensor]) -> Outputs:
    """The inverse of ``pack``."""
    names = {key.rsplit(".", 1)[0] for key in tensors}
    return Outputs({n: SplitOutputs(tensors[f"{n}.logits"], tensors[f"{n}.labels"]) for n in sorted(names)})


def measure(
    names: Iterable[str], outputs: Outputs, retrained: Outputs | None, context: MetricContext
) -> tuple[dict[str, float | None], dict[str, str]]:
    """Columns ``<m>``, ``<m>_retrained``, ``<m>_gap`` of each metric, and ``missing`` (metric -> reason).

    ``retrained`` is None for a user's own model without a recipe: gaps are null then. Metrics that look at the
    test set are left out of a search (``context.held_out == "validation"``).
    """
    columns: dict[str, float | None] = {}
    missing: dict[str, str] = {}
    for name in names:
        entry = METRICS[name]
        value = reference = gap = None
        if entry.final_only and context.held_out != "test":
            missing[name] = "looks at the test set, which a search never does"
        elif entry.pair and retrained is None:
            missing[name] = "needs a retrained model, which this problem does not have"
        else:
            try:
                if entry.pair:
                    value = _finite(entry.fn(outputs, retrained, context), name)
                else:
                    value = _finite(entry.fn(outputs, context), name)
                    if retrained is not None:
                        reference = _finite(entry.fn(retrained, context), name)
                        gap = value - reference
            except MetricUnavailable as error:
                missing[name] = str(error)
        columns |= {name: value, f"{name}_retrained": reference, f"{name}_gap": gap}
    return columns, missing


def _finite(value: Any, name: str) -> float:
    number = float(value)
    if number != number or number in (float("inf"), float("-inf")):
        raise MetricUnavailable(f"{name} came out as {number}")
    return number
