"""KLoM: how differently unlearned and retrained models are distributed, sample by sample.

Georgiev, Rinberg et al. 2024 (arXiv:2410.23232, ICLR 2025); the arithmetic is in ``mechanisms.klom``. An estimate at
the number of models used, with a large bias that depends on it: both the value and its retrained counterpart (gold
against gold) are means over draws of half of each world, so that they carry the same bias. ``oracles: 200`` gives the
published 100 models a side.
"""

from __future__ import annotations

from raybench.mechanisms.klom import Klom, summarise
from raybench.mechanisms.klom import klom as divergence
from raybench.metrics._worlds import phi_of
from raybench.outputs import MetricContext, Worlds
from raybench.registry import HALF_WORLDS, METRICS

ABOUT = {
    "paper": "arXiv:2410.23232",
    "unit": "nats",
    "range": (0.0, None),
    "final_only": True,
    "pool": HALF_WORLDS,
}


@METRICS.register("klom", label="KLoM on D_f", **ABOUT)
def klom(worlds: Worlds, context: MetricContext) -> float:
    """KL divergence of the margins of unlearned from retrained models, mean over D_f. An estimate at half of the
    oracles a side; the retrained value is its bias."""
    return _klom(worlds, "forget").mean


@METRICS.register("klom_worst", label="KLoM on D_f, 95th percentile", **ABOUT)
def klom_worst(worlds: Worlds, context: MetricContext) -> float:
    """The same, 95th percentile over D_f."""
    return _klom(worlds, "forget").percentile_95


@METRICS.register("klom_retain", label="KLoM on D_r", **ABOUT)
def klom_retain(worlds: Worlds, context: MetricContext) -> float:
    """The same, mean over the retain set: what unlearning did to the data it should leave alone."""
    return _klom(worlds, "retain").mean


@METRICS.register("klom_validation", label="KLoM on validation", **ABOUT)
def klom_validation(worlds: Worlds, context: MetricContext) -> float:
    """The same, mean over the validation samples (of the remaining classes in class scenarios)."""
    return _klom(worlds, "validation").mean


def _klom(worlds: Worlds, split: str) -> Klom:
    return summarise(divergence(*phi_of(worlds, split)))
