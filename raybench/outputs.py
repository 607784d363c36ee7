"""Outputs of a model, one forward pass per split: all that a metric sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from raybench.errors import MetricUnavailable


@dataclass(frozen=True)
class SplitOutputs:
    """Logits float32 [n, K] and labels int64 [n] of one split, on the CPU."""

    logits: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return int(self.labels.numel())

    @cached_property
    def log_probabilities(self) -> Tensor:
        """Log-softmax, float64 [n, K]."""
        return torch.log_softmax(self.logits.double(), dim=1)

    @cached_property
    def probabilities(self) -> Tensor:
        """Softmax, float64 [n, K]."""
        return self.log_probabilities.exp()

    @cached_property
    def losses(self) -> Tensor:
        """Cross-entropy per sample in nats, float64 [n]."""
        return -self.log_probabilities.gather(1, self.labels[:, None]).squeeze(1)

    @cached_property
    def confidences(self) -> Tensor:
        """Probability of the true label, float64 [n]."""
        return (-self.losses).exp()

    @cached_property
    def correct(self) -> Tensor:
        """Whether the prediction is the label, bool [n]."""
        return self.logits.argmax(dim=1) == self.labels


class Outputs(Mapping[str, SplitOutputs]):
    """Split name -> outputs. Names: ``retain forget validation test``, and in class scenarios
    ``validation_forgotten test_forgotten`` (there ``validation`` and ``test`` hold the remaining classes).
    A split that is absent or empty raises ``MetricUnavailable``."""

    def __init__(self, splits: Mapping[str, SplitOutputs]) -> None:
        self._splits = dict(splits)

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

    def has(self, name: str) -> bool:
        """Whether the split is there and has samples."""
        return name in self._splits and len(self._splits[name]) > 0


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
    oracles: Callable[[], Sequence[Outputs]] = tuple  # outputs of further retrained models, loaded when asked for

    def unseen(self, outputs: Outputs) -> SplitOutputs:
        """Never-trained samples of the same class mix as the forget set: the forgotten classes' held-out
        samples in class scenarios, the whole held-out split otherwise."""
        return outputs[f"{self.held_out}_forgotten" if self.forget_classes else self.held_out]
