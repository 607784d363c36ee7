"""Outputs of a model, one forward pass per split: all that a metric sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from raybench.errors import MetricUnavailable
from raybench.registry import CLASSIFICATION
from raybench.seeding import numpy_generator

DRAWS = 10  # random halves of a world over which a statistic is averaged


def logit_statistic(logits: Tensor, labels: Tensor) -> Tensor:
    """phi = log(p_y / (1 - p_y)) of the true label, in nats: float64 [..., n].

    ``logits`` [..., n, K] of n examples (leading dimensions: models), ``labels`` int64 [n]. Computed as
    z_y - logsumexp over k != y of z_k, so no probability is formed and nothing saturates; the softmax of ``logits``
    gives the same number. The statistic of LiRA (Carlini et al. 2022, arXiv:2112.03570, section IV.C) and the margin of
    KLoM (Georgiev et al. 2024, arXiv:2410.23232).
    """
    if logits.shape[-1] < 2:
        raise MetricUnavailable(f"the logit statistic needs at least two classes, got {logits.shape[-1]}")
    z = logits.double()
    at = labels.view(-1, 1).expand(*z.shape[:-1], 1)
    own = z.gather(-1, at).squeeze(-1)
    others = z.scatter(-1, at, -torch.inf)
    return own - torch.logsumexp(others, dim=-1)


@dataclass(frozen=True)
class SplitOutputs:
    """Logits float32 [n, K] and labels int64 [n] of one split, on the CPU.

    A model without classes, a denoiser, has ``sample_losses`` float32 [n] and no logits, [n, 0]; what needs classes
    then raises ``MetricUnavailable``. Predicting nothing costs 1 a sample there.
    """

    logits: Tensor
    labels: Tensor
    sample_losses: Tensor | None = None

    def __len__(self) -> int:
        return int(self.labels.numel())

    def at(self, positions: Tensor) -> SplitOutputs:
        """The samples at ``positions`` (int64), in that order."""
        losses = self.sample_losses
        return SplitOutputs(
            self.logits[positions], self.labels[positions], losses if losses is None else losses[positions]
        )

    @property
    def said(self) -> Tensor:
        """All that the model said: float32 [n, K], or [n, 1] without classes."""
        return self.logits if self.sample_losses is None else self.sample_losses[:, None]

    @property
    def finite(self) -> bool:
        """Whether every sample has a softmax (or a finite loss): no NaN, no plus infinity, not only minus infinity."""
        # The row maximum is finite exactly when a row has none of the three.
        return bool(torch.isfinite(self.said.amax(dim=1)).all()) if len(self) else True

    @cached_property
    def log_probabilities(self) -> Tensor:
        """Log-softmax, float64 [n, K]."""
        return torch.log_softmax(self._logits().double(), dim=1)

    @cached_property
    def probabilities(self) -> Tensor:
        """Softmax, float64 [n, K]."""
        return self.log_probabilities.exp()

    @cached_property
    def losses(self) -> Tensor:
        """Cross-entropy per sample in nats, or the model's own loss without classes, float64 [n]."""
        if self.sample_losses is not None:
            return self.sample_losses.double()
        return -self.log_probabilities.gather(1, self.labels[:, None]).squeeze(1)

    @cached_property
    def confidences(self) -> Tensor:
        """Probability of the true label, float64 [n]."""
        return self.log_probabilities.gather(1, self.labels[:, None]).squeeze(1).exp()

    @cached_property
    def phi(self) -> Tensor:
        """``logit_statistic``, float64 [n]."""
        return logit_statistic(self._logits(), self.labels)

    @cached_property
    def correct(self) -> Tensor:
        """Whether the prediction is the label, bool [n]."""
        return self._logits().argmax(dim=1) == self.labels

    def _logits(self) -> Tensor:
        if self.sample_losses is not None:
            raise MetricUnavailable("needs classes, and this model has none")
        return self.logits


class Outputs(Mapping[str, SplitOutputs]):
    """Split name -> outputs. Names: ``retain forget validation test``, and in class scenarios
    ``validation_forgotten test_forgotten`` (there ``validation`` and ``test`` hold the remaining classes).
    A split that is absent or empty raises ``MetricUnavailable``. Never written to: what was computed stays true."""

    def __init__(self, splits: Mapping[str, SplitOutputs]) -> None:
        self._splits = dict(splits)
        self._known: dict[tuple[Any, ...], float] = {}

    def __getitem__(self, name: str) -> SplitOutputs:
        split = self._splits.get(name)
        if split is None:
            raise MetricUnavailable(f"needs the {name} outputs, which this row does not have")
        if len(split) == 0:
            raise MetricUnavailable(f"the {name} split is empty")
        return split

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self._splits)

    def __len__(self) -> int:
        return len(self._splits)

    def remember(self, key: tuple[Any, ...], compute: Callable[[], float]) -> float:
        """A number that depends on these outputs and on ``key`` alone, computed once: several metrics take the same
        attack, and all rows of a problem take it of the same retrained model. Reasons are not kept."""
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]

    def usable(self, name: str) -> SplitOutputs:
        """The outputs of one split. Raises ``MetricUnavailable`` when absent, empty, or without a softmax.

        A class switched off by a logit of minus infinity is legal: accuracies, attacks and divergences still exist.
        """
        return with_softmax(self[name], name)

    def has(self, name: str) -> bool:
        """Whether the split is there and has samples."""
        return name in self._splits and len(self._splits[name]) > 0


def with_softmax(found: SplitOutputs, name: str) -> SplitOutputs:
    """``found``, or ``MetricUnavailable`` where a row of logits has NaN, plus infinity, or only minus infinity."""
    if not found.finite:
        raise MetricUnavailable(f"the {name} outputs contain NaN or infinite logits")
    return found


@dataclass(frozen=True)
class Worlds:
    """Two worlds of models of one problem: trained on everything and then unlearned, and retrained without D_f.

    ``unlearned``, ``gold``: the outputs of each model. ``seed`` decides the random halves.
    """

    unlearned: Sequence[Outputs]
    gold: Sequence[Outputs]
    seed: int = 0

    def halves(self) -> list[Worlds]:
        """Draws of half as many models from each world as there are gold ones."""
        size = len(self.gold) // 2
        return [
            Worlds([self.unlearned[i] for i in one[:size]], [self.gold[i] for i in other[:size]])
            for one, other in self._orders(len(self.unlearned), len(self.gold))
        ]

    def gold_halves(self) -> list[Worlds]:
        """Draws of two disjoint halves of the gold world: what a perfect method would look like at this size."""
        size = len(self.gold) // 2
        return [
            Worlds([self.gold[i] for i in order[:size]], [self.gold[i] for i in order[size : 2 * size]])
            for order, _ in self._orders(len(self.gold), 0)
        ]

    def _orders(self, first: int, second: int) -> list[tuple[list[int], list[int]]]:
        rng = numpy_generator("worlds", self.seed, first, second)
        return [(rng.permutation(first).tolist(), rng.permutation(second).tolist()) for _ in range(DRAWS)]


@dataclass(frozen=True)
class Shadow:
    """A model trained on a random half of the training split: its outputs, and for ``forget`` and ``retain`` which of
    their samples it was trained on (bool [n])."""

    outputs: Outputs
    inside: Mapping[str, Tensor]


def no_worlds() -> Worlds:
    """Where there is no pool."""
    raise MetricUnavailable("needs worlds of models; set oracles in the spec")


@dataclass(frozen=True)
class MetricContext:
    """Facts a metric may need besides outputs.

    ``held_out`` is ``validation`` in a search and ``test`` in finals: metrics that compare with unseen data
    use ``outputs[context.held_out]`` (``context.unseen(outputs)`` is matched to the classes of D_f).
    """

    num_classes: int
    held_out: str = "test"
    forget_classes: tuple[int, ...] = ()
    evaluate_seed: int = 0
    extras: Mapping[str, float] = field(default_factory=dict)
    # The oracle pool, loaded when asked for: further retrained models, models of random halves, both worlds.
    oracles: Callable[[], Sequence[Outputs]] = tuple
    shadows: Callable[[], Sequence[Shadow]] = tuple
    worlds: Callable[[], Worlds] = no_worlds
    task: str = CLASSIFICATION  # what the problem's model is trained to do

    def unseen(self, outputs: Outputs) -> SplitOutputs:
        """Never-trained samples of the same class mix as the forget set: the forgotten classes' held-out
        samples in class scenarios, the whole held-out split otherwise."""
        return outputs[f"{self.held_out}_forgotten" if self.forget_classes else self.held_out]
