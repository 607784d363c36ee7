"""Fisher forgetting (SFDN): noise on the weights, scaled by the inverse Fisher diagonal of the retain set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from optuna.distributions import FloatDistribution
from torch import Tensor, nn

from raybench.fisher import fisher_of_split, over_labels
from raybench.mechanisms.fisher_noise import add_noise, head_parameters, scrubbing_variance
from raybench.registry import METHODS, RETAIN
from raybench.space import at_least, scientific
from raybench.task import UnlearningTask


@dataclass(frozen=True)
class FisherForgettingHparams:
    """Defaults: the released code's (alpha = 1e-6 where it reports accuracies, 1e-7 to 1e-9 where information)."""

    alpha: Annotated[float, scientific(FloatDistribution(1e-9, 1e-3, log=True))] = 1e-6
    """Strength: the variance of the noise is alpha / F. On digits with lenet5 it
    begins to cost accuracy at 1e-5, of all samples alike; at 1e-4 everything is forgotten."""
    power: Literal["1", "1/2"] = "1"
    """Of 1 / F in the variance: 1 as the released code has it, or 1/2 as the robust rule of the paper."""
    average: bool = True
    """Take the mean of the variances over the second dimension (input channels), as the released code does."""
    boost: float = 10.0
    """Factor of the variance in the head and in tensors of one dimension (shifts, scales of batch norm)."""
    erase_rows: bool = True
    """In class scenarios start the head's rows of the forgotten classes from zero, with variance 1e-4 (before the
    boost). This alone makes the accuracy on D_f zero; without it, noise alone has to do it."""
    labels: Literal["model", "data"] = "model"
    """Labels of the Fisher: the expectation by the model's probabilities, or those of D_r, K times as cheap
    (the empirical Fisher of other people's code)."""
    samples: int | None = None
    """Estimate the Fisher on that many random samples of D_r, or use all."""

    def __post_init__(self) -> None:
        at_least(self, 0, "alpha", "boost")
        at_least(self, 1, "samples")


@METHODS.register(
    "fisher_forgetting",
    hparams=FisherForgettingHparams,
    label="Fisher forgetting",
    paper="arXiv:1911.04933",
    needs={RETAIN},
    tiny={"samples": 100},
    complexity="K N_r",
    batch_norm="read",
)
def fisher_forgetting(task: UnlearningTask, hp: FisherForgettingHparams) -> nn.Module:
    """w <- w + sqrt(alpha / F) N(0, 1), F the Fisher diagonal of D_r (Golatkar et al. 2020).

    F = E_x E_{y ~ p(y|x)} (d loss(x, y) / d w)^2 at the original model, in evaluation mode, exact over all classes;
    shared by all settings of alpha. 1 / F is capped at 1e3 (1e2 in the head); the class to forget is all that the
    method knows of D_f. The result is one draw of a random model: the spec's unlearn seeds give more. The buffers of
    batch norm are read and stay. Reports ``noise`` (the root mean square of the noise on a weight).
    Cost: K backward and 1 forward pass per sample of D_r (or of ``samples``).

    Deviations:
        - the variance is alpha / F, as in the released code; the paper's robust rule has alpha / F^(1/2)
          (``power: 1/2``).
        - the head is the model's last linear layer; the released code takes every tensor whose first dimension is the
          number of classes for it, whatever the tensor is.
        - per-sample gradients are computed for whole batches, and the output gradients of all classes from one forward
          pass; the released code goes one sample and one class at a time. The sums are the same.
        - ``samples`` and ``labels: data`` make an estimate at less cost; the default is all of D_r, exactly.
    """
    fisher = _fisher(task, hp)
    head = head_parameters(task.model)
    rows = task.forget_classes if hp.erase_rows else ()
    variance = scrubbing_variance(fisher, head, hp.alpha, power=hp.power, average=hp.average, boost=hp.boost, rows=rows)
    add_noise(task.model, variance, task.generator, head, rows)
    total = sum(float(v.double().sum()) for v in variance.values())
    task.report({"noise": (total / sum(v.numel() for v in variance.values())) ** 0.5})
    return task.model


def _fisher(task: UnlearningTask, hp: FisherForgettingHparams) -> dict[str, Tensor]:
    """F of the original model on D_r."""

    def compute(generator: torch.Generator) -> dict[str, Tensor]:
        loss = over_labels(task.loss) if hp.labels == "model" else task.loss
        return fisher_of_split(task.model, task.retain, samples=hp.samples, generator=generator, loss=loss)

    return task.once("fisher", compute, labels=hp.labels, samples=hp.samples)
