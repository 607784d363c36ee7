"""One pass over each split, outputs cached, metrics computed from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from raybench.data import Split
from raybench.errors import MetricUnavailable
from raybench.outputs import MetricContext, Outputs, SplitOutputs, Worlds
from raybench.registry import HALF_WORLDS, MATCH_RETRAINED, METRICS, WHOLE_WORLDS, MetricEntry
from raybench.task_kinds import CLASSIFYING, TaskKind

BATCH_SIZE = 1024  # part of the protocol: another size may change the last bit of a logit
SEARCH_SPLITS = ("retain", "forget", "validation", "validation_forgotten")
FINAL_SPLITS = (*SEARCH_SPLITS, "test", "test_forgotten", "test_triggered")


def splits_for(final: bool) -> tuple[str, ...]:
    """A search never sees the test set."""
    return FINAL_SPLITS if final else SEARCH_SPLITS


@torch.no_grad()  # not inference_mode: a metric may fit something on the logits, and inference tensors forbid that
def outputs_of(
    predictor: Callable[..., Tensor], splits: Mapping[str, Split], names: Iterable[str], kind: TaskKind = CLASSIFYING
) -> Outputs:
    """Outputs on every named split that exists, on the CPU; modules are put in evaluation mode."""
    if isinstance(predictor, nn.Module):
        predictor.eval()
    return Outputs({name: kind.outputs(predictor, splits[name], BATCH_SIZE) for name in names if name in splits})


def part_of(outputs: Outputs, positions: Mapping[str, Tensor]) -> Outputs:
    """The same with only the samples at ``positions`` (``Problem.part``) of the splits that it names."""
    found = {name: outputs[name] for name in outputs if outputs.has(name)}
    for name, at in positions.items():
        if name in found:
            found[name] = found[name].at(at)
    return Outputs(found)


def pack(outputs: Outputs) -> dict[str, Tensor]:
    """Outputs as named tensors, for safetensors files."""
    packed = {}
    for name in outputs:
        if outputs.has(name):
            packed[f"{name}.logits"], packed[f"{name}.labels"] = outputs[name].logits, outputs[name].labels
            losses = outputs[name].sample_losses
            if losses is not None:
                packed[f"{name}.losses"] = losses
    return packed


def unpack(tensors: Mapping[str, Tensor]) -> Outputs:
    """The inverse of ``pack``."""
    names = {key.rsplit(".", 1)[0] for key in tensors}
    parts = ("logits", "labels", "losses")
    return Outputs({n: SplitOutputs(*(tensors.get(f"{n}.{part}") for part in parts)) for n in sorted(names)})  # type: ignore[arg-type]


def extras_of(original: Outputs, replaced: Iterable[str], final: bool) -> dict[str, float]:
    """What metrics may know of the original model and of the request (``MetricContext.extras``): accuracies
    ``original_<split>_accuracy``, in a search without the test set, and ``forget_<part>_replaced`` where the request
    changed the labels or images of D_f."""
    names = ("retain", "validation", "test") if final else ("retain", "validation")
    right = {n: original[n].correct for n in names if original.has(n) and original[n].sample_losses is None}
    extras = {f"original_{name}_accuracy": float(correct.double().mean()) for name, correct in right.items()}
    return extras | {f"forget_{part}_replaced": 1.0 for part in replaced}


class Probes(Protocol):
    """Who runs the metrics that need models and data (``raybench.probing``). Both raise ``MetricUnavailable``."""

    def value(self, entry: MetricEntry, context: MetricContext) -> float:
        """The metric of the row's model."""
        ...

    def of_retrained(self, entry: MetricEntry, context: MetricContext) -> float:
        """The metric of the retrained model."""
        ...


def measure(
    names: Iterable[str],
    outputs: Outputs,
    retrained: Outputs | None,
    context: MetricContext,
    probes: Probes | None = None,
    pooled: bool = False,
) -> tuple[dict[str, float | None], dict[str, str]]:
    """Columns ``<m>``, ``<m>_retrained``, ``<m>_gap`` of each metric, and ``missing`` (metric -> reason).

    ``retrained`` is None for a user's own model without a recipe: gaps are null then. Metrics that look at the
    test set are left out of a search (``context.held_out == "validation"``), metrics that probe the models wherever
    ``probes`` is None, and metrics of the oracle pool unless ``pooled``. A value whose counterpart of the retrained
    model is missing stands, with the reason. The counterpart of a metric of whole worlds is gold against gold.
    """
    columns: dict[str, float | None] = {}
    missing: dict[str, str] = {}
    for name in names:
        entry = METRICS[name]
        value = reference = gap = None
        if reason := _barred(entry, retrained, context, probes, pooled):
            missing[name] = reason
        else:
            try:
                value = _value(entry, outputs, retrained, context, probes)
                if entry.pool in WHOLE_WORLDS:
                    reference = _of_gold(
                        entry, dataclasses.replace(context.worlds(), seed=context.evaluate_seed), context
                    )
                elif retrained is not None and (not entry.pair or entry.direction == MATCH_RETRAINED):
                    reference = _of_retrained(entry, retrained, context, probes)
                if reference is not None:
                    gap = value - reference
            except MetricUnavailable as error:
                missing[name] = str(error)
        columns |= {name: value, f"{name}_retrained": reference, f"{name}_gap": gap}
    return columns, missing


def _barred(
    entry: MetricEntry, retrained: Outputs | None, context: MetricContext, probes: Probes | None, pooled: bool
) -> str | None:
    """Why this kind of row cannot have the metric now, whatever its outputs are."""
    if context.task not in entry.tasks:
        return f"is for {' and '.join(sorted(entry.tasks))}, and this model is trained for {context.task}"
    if entry.final_only and context.held_out != "test":
        return "looks at the test set, which a search never does"
    if entry.fits and context.held_out != "test":
        return "fits a classifier, which only finals and references do"
    if entry.pool and not pooled:
        return "is measured after the finals, from the oracle pool"
    if entry.pair and retrained is None:
        return "needs a retrained model, which this problem does not have"
    if entry.probe and probes is None:
        return "probes the models, which only finals and references do"
    return None


def _value(
    entry: MetricEntry, outputs: Outputs, retrained: Outputs | None, context: MetricContext, probes: Probes | None
) -> float:
    if entry.pool in WHOLE_WORLDS:
        worlds = context.worlds()
        if worlds.unlearned is worlds.gold:  # the row of a retrained model
            return _of_gold(entry, worlds, context)
        return _mean(entry, worlds.halves() if entry.pool == HALF_WORLDS else [worlds], context)
    if entry.probe and probes is not None:
        return _finite(probes.value(entry, context), entry.name)
    return _finite(entry.fn(*((outputs, retrained) if entry.pair else (outputs,)), context), entry.name)


def _of_gold(entry: MetricEntry, worlds: Worlds, context: MetricContext) -> float:
    """Gold against gold: the mean over draws of two disjoint halves of the gold world."""
    return _mean(entry, worlds.gold_halves(), context)


def _mean(entry: MetricEntry, draws: Sequence[Worlds], context: MetricContext) -> float:
    return sum(_finite(entry.fn(draw, context), entry.name) for draw in draws) / len(draws)


def _of_retrained(entry: MetricEntry, retrained: Outputs, context: MetricContext, probes: Probes | None) -> float:
    if not entry.probe or probes is None:
        return _value(entry, retrained, retrained, context, None)
    try:
        return _finite(probes.of_retrained(entry, context), entry.name)
    except MetricUnavailable as error:
        raise MetricUnavailable(f"of the retrained model: {error}") from error


def _finite(value: Any, name: str) -> float:
    number = float(value)
    if number != number or number in (float("inf"), float("-inf")):
        raise MetricUnavailable(f"{name} came out as {number}")
    return number
