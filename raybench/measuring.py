"""Metrics of rows that exist: those of the oracle pool, and those added to a finished experiment.

They are computed from the outputs that finals keep; nothing of the method runs again. What probes the models needs
their weights (``keep: [outputs, weights]``), and says so where these were not kept.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping
from typing import Any

from torch import nn

from raybench.appraisal import kept_outputs, kept_tensors, metric_context, pool_name
from raybench.errors import MetricUnavailable
from raybench.evaluation import Probes, measure
from raybench.ledger import MEASURE
from raybench.outputs import MetricContext, Outputs
from raybench.probing import Prober
from raybench.problem import Problem
from raybench.reference_training import ORIGINAL, RETRAINED
from raybench.references import Reference
from raybench.registry import METHODS, METRICS, MetricEntry
from raybench.seeding import seeded_globals
from raybench.spec import CLEAN, TrialSpec
from raybench.trial import reason_of
from raybench.version import __version__
from raybench.workshop import Settings, Workshop, WrongDevice

NOT_KEPT = "the outputs of this trial were not kept; set keep: [outputs] and run it in a new results folder"
NO_WEIGHTS = "needs the weights of this trial, which were not kept; set keep: [outputs, weights]"


def measure_trial(spec: TrialSpec, context: Mapping[str, Any], shop: Workshop) -> list[dict[str, Any]]:
    """Records of ``METRICS_SCHEMA`` for the metrics that ``context`` names (under ``MEASURE``), of a final or reference
    row that exists."""
    problem = shop.problem(spec.problem)
    about = metric_context(spec, shop, problem)
    references = shop.references
    retrained = references.pool_outputs(problem, RETRAINED, 0)
    outputs = _outputs(spec, shop, problem)
    probes = _Probes(spec, shop, problem)
    return [
        _record(spec, context, shop, _measured(name, outputs, retrained, about, probes)) for name in context[MEASURE]
    ]


def unmeasured(spec: TrialSpec, context: Mapping[str, Any], shop: Workshop, reason: str) -> list[dict[str, Any]]:
    """The records where no process lived to measure."""
    return [_record(spec, context, shop, {"metric": name, "reason": reason}) for name in context[MEASURE]]


def receipt(spec: TrialSpec) -> dict[str, Any]:
    """What the driver hears of a finished measurement: no row of its own."""
    return {"trial_id": spec.trial_id, "status": "ok", "phase": spec.phase, "method": spec.method}


def pool_of(entry: MetricEntry, settings: Settings) -> str:
    """The part of a measurement's key that the pool decides; empty for metrics that do not use it."""
    return pool_name(settings.oracles, settings.shadows) if entry.pool else ""


def _outputs(spec: TrialSpec, shop: Workshop, problem: Problem) -> Outputs | None:
    if not METHODS[spec.method].reference:
        return kept_outputs(spec, shop)
    kind = ORIGINAL if spec.method == "original" else CLEAN if spec.variant == CLEAN else RETRAINED
    return shop.references.pool_outputs(problem, kind, spec.unlearn_seed, spec.training)


def _measured(
    name: str, outputs: Outputs | None, retrained: Outputs, context: MetricContext, probes: Probes
) -> dict[str, Any]:
    started, found = time.perf_counter(), {"metric": name}
    if outputs is None:
        return found | {"reason": NOT_KEPT}
    try:
        columns, missing = measure([name], outputs, retrained, context, probes, pooled=True)
    except WrongDevice:
        raise
    except Exception as error:  # a bug in one metric is its reason, and the others stand
        return found | {"reason": reason_of(error)}
    return found | {
        "value": columns[name],
        "retrained": columns[f"{name}_retrained"],
        "gap": columns[f"{name}_gap"],
        "reason": missing.get(name),
        "seconds": time.perf_counter() - started,
    }


def _record(spec: TrialSpec, context: Mapping[str, Any], shop: Workshop, measured: Mapping[str, Any]) -> dict[str, Any]:
    entry = METRICS[measured["metric"]]
    return {
        "trial_id": spec.trial_id,
        "attempt": context.get("attempt", 0),
        "version": entry.version,
        "evaluate_seed": shop.settings.evaluate_seed,
        "pool": pool_of(entry, shop.settings),
        "measured_at": datetime.datetime.now(datetime.UTC),
        "raybench_version": __version__,
        **measured,
    }


class _Probes:
    """``evaluation.Probes`` for a row whose model may have been kept; made when the first probe asks."""

    def __init__(self, spec: TrialSpec, shop: Workshop, problem: Problem) -> None:
        self._spec, self._shop, self._problem = spec, shop, problem
        self._prober: Prober | None = None

    def value(self, entry: MetricEntry, context: MetricContext) -> float:
        return self._get().value(entry, context)

    def of_retrained(self, entry: MetricEntry, context: MetricContext) -> float:
        return self._get().of_retrained(entry, context)

    def _get(self) -> Prober:
        if self._prober is None:
            spec, problem, references = self._spec, self._problem, self._shop.references
            original, retrained = references.original(problem, spec.training), references.retrained(problem, 0)
            model = self._model(original, retrained)
            self._prober = Prober(model, original, retrained, problem, self._shop)
        return self._prober

    def _model(self, original: Reference, retrained: Reference) -> nn.Module:
        spec, problem = self._spec, self._problem
        if spec.method == "original":
            return original.model
        if spec.variant == CLEAN:
            return self._shop.references.clean(problem, spec.unlearn_seed).model
        if spec.method == "retrain":
            index = spec.unlearn_seed
            return self._shop.references.retrained(problem, index).model if index else retrained.model
        weights = kept_tensors(spec, self._shop, "weights")
        if weights is None:
            raise MetricUnavailable(NO_WEIGHTS)
        with seeded_globals(0):
            model = problem.build()
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise MetricUnavailable("the kept weights fit another network than the problem's") from error
        return model.to(problem.splits["train"].images.device).eval()
