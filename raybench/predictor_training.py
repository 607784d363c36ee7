"""Training the predictors of ``rewind`` on windows of training histories, and judging them against plain controls.

Jang, Kim and Youn, AAAI 2025 (doi:10.1609/aaai.v39i25.34822): Adam on the mean absolute error (equation 7), one network
per operation type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raybench.content_store import ContentStore
from raybench.errors import UserError
from raybench.histories import KIND, Sampler, Windows
from raybench.mechanisms.rewinding import BACK, HISTORY, KINDS, HistoryNet, Predict, Stream, extrapolate, in_chunks
from raybench.seeding import torch_generator


@dataclass(frozen=True)
class PredictorTraining:
    """How predictors are trained (``training`` of a spec of histories)."""

    windows: int = 6000
    """Windows per history and operation type."""
    epochs: int = 15
    """Passes over the windows."""
    batch_size: int = 512
    """Windows a step."""
    lr: float = 2e-3
    """Adam's learning rate at the start; it falls to zero along half a cosine."""
    synthetic: float = 0.0
    """Share of the windows that is made up: exponential histories (``exponential_windows``) beside the real ones."""
    seed: int = 0
    """Of the windows, the initial weights and the order."""


def cut_windows(keys: Sequence[str], store: ContentStore, settings: PredictorTraining) -> dict[str, Windows]:
    """Windows from the stored histories ``keys``, by operation type; ``UserError`` where one is missing."""
    sampler = Sampler(torch_generator("windows", settings.seed, list(keys)), settings.windows)
    for key in keys:
        entry = store.get(KIND, key)
        if entry is None:
            raise UserError(
                f"every history of the spec must have been collected, {key} is not in {store.folder}; "
                "run jobs/collect_histories.py first"
            )
        sampler.add(entry[0])
    return sampler.windows()


def exponential_windows(
    count: int,
    generator: torch.Generator,
    rho: tuple[float, float] = (0.5, 0.99),
    distance: tuple[float, float] = (1e-3, 1e-1),
    spread: float = 0.1,
) -> Windows:
    """Made-up weights that approach a limit: theta_k = theta* + D rho^k, with k = 0 at theta_{t-3}.

    rho is uniform, D log-uniform with a random sign, theta* normal with standard deviation ``spread``. What a single
    coefficient cannot do: the residual over the movement runs from 0.2 at rho = 0.99 to 7 at 0.5.
    """
    rate = rho[0] + (rho[1] - rho[0]) * torch.rand(count, generator=generator, dtype=torch.float64)
    low, high = (math.log(end) for end in distance)
    length = (low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)).exp()
    sign = torch.randint(0, 2, (count,), generator=generator) * 2.0 - 1.0
    limit = spread * torch.randn(count, generator=generator, dtype=torch.float64)
    steps = torch.arange(HISTORY + BACK, dtype=torch.float64)[:, None]
    path = (limit + sign * length * rate**steps).float()
    return Windows(path[BACK:], path[0] - path[BACK])


def train_predictor(
    windows: Windows, settings: PredictorTraining, progress: Callable[[int, float], None] = lambda epoch, mae: None
) -> HistoryNet:
    """A predictor from windows of one operation type. ``progress(epoch, mean absolute error)`` after each epoch.

    Every window is seen with a random sign (a network with all weights negated moves the same way). The biases of the
    dense layers stay zero, see ``raybench.methods.rewind``.
    """
    if settings.synthetic:
        extra = round(len(windows) * settings.synthetic / (1.0 - settings.synthetic))
        made = exponential_windows(extra, torch_generator("synthetic", settings.seed))
        windows = Windows(torch.cat([windows.history, made.history], 1), torch.cat([windows.residual, made.residual]))
    generator = torch_generator("predictor", settings.seed)
    net = HistoryNet().initialise(generator)
    for stream in net.modules():
        if isinstance(stream, Stream):
            for layer in (*stream.dense, stream.out):
                layer.bias.requires_grad_(False)
    net.join.bias.requires_grad_(False)
    optimiser = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=settings.lr)
    total = settings.epochs * math.ceil(len(windows) / settings.batch_size)
    step = 0
    for epoch in range(1, settings.epochs + 1):
        errors = []
        for rows in torch.randperm(len(windows), generator=generator).split(settings.batch_size):
            sign = torch.randint(0, 2, (len(rows),), generator=generator) * 2.0 - 1.0
            optimiser.param_groups[0]["lr"] = settings.lr * 0.5 * (1.0 + math.cos(math.pi * step / total))
            loss = (net(sign * windows.history[:, rows]) - sign * windows.residual[rows]).abs().mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            errors.append(float(loss.detach()) * len(rows))
            step += 1
        progress(epoch, sum(errors) / len(windows))
    return net.eval().requires_grad_(False)


def best_coefficient(feature: Tensor, target: Tensor) -> float:
    """The lambda that minimises sum |target - lambda feature| (least absolute deviation), exactly: the median of
    target / feature weighted by |feature|. Zero where the feature vanishes everywhere."""
    moving = feature != 0
    ratio, weight = (target[moving] / feature[moving]).double(), feature[moving].abs().double()
    if not len(ratio):
        return 0.0
    order = ratio.argsort()
    mass = weight[order].cumsum(0)
    return float(ratio[order][int(torch.searchsorted(mass, mass[-1] / 2))])


def judge(predict: Predict, windows: Windows) -> dict[str, float]:
    """Mean absolute errors on windows: of ``predict``, and of its controls.

    ``mae``; ``mae_coefficient``, of the best single coefficient on theta_t - theta_{t+14} (``coefficient``: the task
    vector's, fitted to these very windows, so no such line does better); ``mae_step``, of the best one on
    theta_t - theta_{t+1} (``step_coefficient``); ``mae_extrapolation``, of 3 (theta_t - theta_{t+1}); ``mae_still``, of
    the answer 0; ``windows``, their number.
    """
    history, residual = windows.history, windows.residual
    whole, one = history[0] - history[-1], history[0] - history[1]

    def error(answer: Tensor) -> float:
        return float((answer - residual).abs().double().mean())

    coefficient, step_coefficient = best_coefficient(whole, residual), best_coefficient(one, residual)
    return {
        "mae": error(in_chunks(predict, history)),
        "mae_coefficient": error(coefficient * whole),
        "coefficient": coefficient,
        "mae_step": error(step_coefficient * one),
        "step_coefficient": step_coefficient,
        "mae_extrapolation": error(extrapolate(history)),
        "mae_still": error(torch.zeros_like(residual)),
        "windows": float(len(windows)),
    }


def train_all(
    training_keys: Sequence[str],
    held_out_keys: Sequence[str],
    store: ContentStore,
    settings: PredictorTraining,
    progress: Callable[[str], None] = lambda line: None,
) -> tuple[dict[str, HistoryNet], dict[str, dict[str, Any]]]:
    """Predictors of all operation types from stored histories, and what became of them: on held-out histories
    (``held_out``), on exponential ones (``exponential``), and the answer to weights that stand still (``still``: mean
    |residual|)."""
    training, held_out = (cut_windows(keys, store, settings) for keys in (training_keys, held_out_keys))
    made = exponential_windows(20_000, torch_generator("exponential", settings.seed))
    resting = made.history[:1].expand(HISTORY, -1)
    predictors: dict[str, HistoryNet] = {}
    report: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        if kind not in training or kind not in held_out:
            raise UserError(f"histories must have {kind} weights among both training and held-out runs; add a model")
        progress(f"{kind}: {len(training[kind])} windows")
        net = train_predictor(training[kind], settings, lambda epoch, mae: progress(f"  epoch {epoch}: {mae:.3g}"))
        predictors[kind] = net
        report[kind] = {
            "training_windows": len(training[kind]),
            "held_out": judge(net, held_out[kind]),
            "exponential": judge(net, made),
            "still": float(net(resting).abs().mean()),
        }
    return predictors, report
