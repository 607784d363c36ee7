"""Forget samples by how much a model must memorise them: easy ones, middling ones, or those learnt only by heart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from raybench.data import Request
from raybench.errors import UserError
from raybench.registry import SAMPLE, SCENARIOS

COMPONENTS = 64
CROWD = 5000  # samples that the neighbours are looked for among
BLOCK = 4096


@dataclass(frozen=True)
class MemorizationParams:
    """Which samples, and how many. ``ValueError`` for values outside their ranges."""

    level: Literal["low", "medium", "high"] = "high"
    """The least, the middling or the most memorised samples."""
    fraction: float = 0.05
    """Share of the training split, above 0 and below 1."""
    neighbours: int = 10
    """How many other samples are asked about each."""

    def __post_init__(self) -> None:
        if not (isinstance(self.fraction, int | float) and 0 < self.fraction < 1):
            raise ValueError(f"fraction must be above 0 and below 1, got {self.fraction!r}; change it")
        if self.neighbours < 1:
            raise ValueError(f"neighbours must be at least 1, got {self.neighbours}; change it")


@SCENARIOS.register(
    "memorization", params=MemorizationParams, kind=SAMPLE, label="Memorisation-graded", paper="arXiv:2406.01257"
)
def memorization(
    images: np.ndarray, labels: np.ndarray, num_classes: int, params: MemorizationParams, rng: np.random.Generator
) -> Request:
    """The samples with the lowest, middling or highest memorisation score (Zhao et al. 2024, RUM), uint8 [N, C, H, W].

    Score: 1 - the share of a sample's nearest other samples that have its label, each weighted by the inverse of its
    distance in the first 64 principal components of the pixels, among at most 5,000 drawn ones. A proxy: memorisation
    (Feldman 2020, arXiv:1906.05271) is p(y | trained on x) - p(y | not trained on x); a network that fits its data has
    1 for the first term, and how the label follows from other samples stands in for the second. It needs no model, so
    that a forget set does not depend on one. True estimates, from models of random halves, go through the scenario
    ``index``. Raises ``UserError`` where the fraction rounds to no sample or to all, or neighbours are too few.
    """
    total, count = len(labels), round(params.fraction * len(labels))
    if not 1 <= count < total:
        raise UserError(
            f"scenario memorization must forget 1 to {total - 1} of {total} training samples, got fraction "
            f"{params.fraction}; change it"
        )
    score = memorization_scores(images, labels, params.neighbours, rng)
    order = np.argsort(score, kind="stable")
    start = {"low": 0, "medium": (total - count) // 2, "high": total - count}[params.level]
    forget = np.zeros(total, dtype=bool)
    forget[order[start : start + count]] = True
    return Request(forget=forget)


def memorization_scores(
    images: np.ndarray, labels: np.ndarray, neighbours: int, rng: np.random.Generator
) -> np.ndarray:
    """Score per sample, float64 [N] in [0, 1], see ``memorization``."""
    total = len(labels)
    crowd = np.sort(rng.choice(total, size=min(total, CROWD), replace=False))
    if neighbours >= len(crowd):
        raise UserError(
            f"scenario memorization must ask fewer neighbours than {len(crowd)} samples, got {neighbours}; change it"
        )

    def pixels(rows: np.ndarray) -> np.ndarray:
        return np.asarray(images[rows], dtype=np.float64).reshape(len(rows), -1) / 255.0

    among = pixels(crowd)
    axes = PCA(n_components=min(COMPONENTS, *among.shape), svd_solver="full").fit(among)
    index = NearestNeighbors(n_neighbors=neighbours + 1).fit(axes.transform(among))
    score = np.empty(total)
    for start in range(0, total, BLOCK):
        rows = np.arange(start, min(start + BLOCK, total))
        distance, found = index.kneighbors(axes.transform(pixels(rows)))
        weight = 1.0 / (distance + 1e-9)
        weight[crowd[found] == rows[:, None]] = 0.0  # not itself
        agrees = labels[crowd[found]] == labels[rows, None]
        score[rows] = 1.0 - (weight * agrees).sum(axis=1) / weight.sum(axis=1)
    return score
