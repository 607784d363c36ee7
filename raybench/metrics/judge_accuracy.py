"""How good the classifier is that counts what a generative model draws."""

from __future__ import annotations

from raybench.outputs import MetricContext
from raybench.probe import Probe
from raybench.registry import DENOISING, HIGHER, METRICS


@METRICS.register("judge_accuracy", label="Accuracy of the judge", direction=HIGHER, probe=True, tasks={DENOISING})
def judge_accuracy(probe: Probe, context: MetricContext) -> float:
    """Test accuracy of the classifier behind ``forgotten_share`` and ``kid``, the same in every row of a dataset."""
    return probe.judge().accuracy
