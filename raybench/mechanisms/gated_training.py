"""Training with label-gated channels in every third epoch (Lin et al., CVPR 2023, section 3.2)."""

from __future__ import annotations

from torch import Tensor, nn

from raybench.data import Batch
from raybench.mechanisms.gates import clip_gates, gate_penalty, scaled_channels
from raybench.training import TrainingJob, cross_entropy

PERIOD, GATED_FROM = 3, 2  # of every three epochs the third is gated
OFFICIAL_PENALTY = 1e-3
OFFICIAL_RATES = 196 * (33 * 0.1 + 17 * 0.01 + 17 * 0.001)  # summed over its gated steps: 200 epochs, drops at 100, 150


def is_gated(epoch: int) -> bool:
    """Whether ``epoch`` (from 0) runs through the gates."""
    return epoch % PERIOD >= GATED_FROM


def scaled_penalty(job: TrainingJob) -> float:
    """The official penalty for a run whose gated steps have other rates, or another number (0 without such steps)."""
    steps = job.train.steps(job.recipe.batch_size)
    total = job.recipe.epochs * steps
    rates = sum(job.recipe.lr_at(step, total) for step in range(total) if is_gated(step // steps))
    return OFFICIAL_PENALTY * OFFICIAL_RATES / rates if rates > 0.0 else 0.0


def fit_gated(job: TrainingJob, model: nn.Module, gates: nn.Parameter, penalty: float) -> None:
    """Train ``model`` and ``gates`` [K, C] in place by the recipe of ``job``; the model's last stage has K channels.

    In gated epochs the channels of a sample of class y count M[:, y] times and the loss has ``penalty`` times
    ``gate_penalty`` beside the cross-entropy. After every step the gates are clipped.
    """
    epochs_done = 0

    def count(epoch: int) -> None:
        nonlocal epochs_done
        epochs_done = epoch

    with scaled_channels(model.stages()[-1]) as held:  # type: ignore[operator]

        def loss(network: nn.Module, batch: Batch) -> Tensor:
            if not is_gated(epochs_done):
                return cross_entropy(network, batch)
            held["by"] = gates[:, batch[1]].T
            losses = cross_entropy(network, batch) + penalty * gate_penalty(gates)
            held.clear()
            return losses

        job.fit(
            model,
            loss=loss,
            parameters=[*model.parameters(), gates],
            after_step=lambda step: clip_gates(gates),
            after_epoch=count,
        )
