"""ZRF, the zero-retrain forgetting score of Bad Teacher: how much a model answers D_f like an untrained network.

A weak metric: a random-looking output is a fingerprint of its own, so the value to meet is the retrained model's
and not 1. One untrained network is a matter of luck; the mean over several is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from raybench.data import Split
from raybench.errors import MetricUnavailable
from raybench.mechanisms.relearning import EVALUATION_BATCH
from raybench.outputs import MetricContext
from raybench.probe import Probe
from raybench.registry import METRICS

NETWORKS = 5


@METRICS.register("zrf", label="ZRF", unit="1", range=(1 - math.log(2), 1.0), paper="arXiv:2205.08096", probe=True)
def zrf(probe: Probe, context: MetricContext) -> float:
    """1 - mean over D_f of JS(p_u, p_random) in nats, averaged over 5 randomly initialised networks.

    Chundawat et al. 2023, the paper's form. In [1 - ln 2, 1].
    """
    return _mean_score(probe, paper_score)


@METRICS.register(
    "zrf_code", label="ZRF (official scale)", unit="1", range=(None, 1.0), paper="arXiv:2205.08096", probe=True
)
def zrf_code(probe: Probe, context: MetricContext) -> float:
    """ZRF as the official code computes it: the scale of published values, averaged over 5 random networks.

    The code's divergence is reversed, KL(m || p) in place of KL(p || m), and divided by the number of classes as well,
    which squeezes the score towards 1: for comparison with published tables only.
    """
    return _mean_score(probe, code_score)


def paper_score(log_p: Tensor, log_q: Tensor) -> float:
    """1 - mean JS of two sets of predictions, log-probabilities float64 [n, K]."""
    p, q = log_p.exp(), log_q.exp()
    m = (p + q) / 2
    terms = torch.xlogy(p, p) + torch.xlogy(q, q) - torch.xlogy(p, m) - torch.xlogy(q, m)
    return 1.0 - float((terms.sum(dim=1) / 2).clamp(0.0, math.log(2)).mean())


def code_score(log_p: Tensor, log_q: Tensor) -> float:
    """1 - (KL(m || p) + KL(m || q)) / 2 as the mean over samples and classes, log-probabilities float64 [n, K]."""
    m = (log_p.exp() + log_q.exp()) / 2
    terms = 2 * torch.xlogy(m, m) - m * log_p - m * log_q
    return 1.0 - float(terms.mean() / 2)


def _mean_score(probe: Probe, score: Callable[[Tensor, Tensor], float]) -> float:
    forget = probe.splits["forget"]
    ours = _log_probabilities(probe.model, forget)
    theirs = (_log_probabilities(probe.build("zrf", index), forget) for index in range(NETWORKS))
    return sum(score(ours, others) for others in theirs) / NETWORKS


@torch.no_grad()
def _log_probabilities(model: nn.Module, split: Split) -> Tensor:
    """Log-softmax on the CPU, float64 [n, K]."""
    if not len(split):
        raise MetricUnavailable("the forget split is empty")
    model.eval()
    logits = torch.cat([model(images).cpu() for images, _ in split.batches(EVALUATION_BATCH)]).double()
    if not bool(torch.isfinite(logits.amax(dim=1)).all()):
        raise MetricUnavailable("the forget outputs contain NaN or infinite logits")
    return torch.log_softmax(logits, dim=1)
