"""The distance to a retrained model that nobody has: estimated from the original model and from unseen samples."""

from __future__ import annotations

import torch
from torch import Tensor

from raybench.errors import MetricUnavailable
from raybench.mechanisms.attacks import attack_auc
from raybench.metrics._splits import accuracy, usable
from raybench.outputs import MetricContext, Outputs, SplitOutputs
from raybench.registry import LOWER, METRICS

KEPT = ("retain", "validation")  # what the original's accuracies are in ``context.extras`` of


@METRICS.register("retrained_free", label="Retrained-free objective", direction=LOWER)
def retrained_free(outputs: Outputs, context: MetricContext) -> float:
    """Mean of four gaps to what a retrained model is expected to have: an objective without a retrained model.

    ``distance_validation`` with its four values of the retrained model replaced by what is known without one:

    1. retain and 2. validation accuracy are not lower than the original's: max(0, A_original - A) each;
    3. forget accuracy is the model's own on unseen samples of the same kind: |A_f - A_unseen|, in class scenarios
       A_f alone, as a model that has never seen a class does not answer with it;
    4. the loss attack cannot tell D_f from these unseen samples: |AUC - 1/2|.

    3 and 4 say what holds for any model that has not met D_f, whatever its accuracy. Unseen of the same kind are the
    validation samples; in class scenarios those of the forgotten classes; where the request gave D_f wrong labels,
    the validation samples with each of their K - 1 wrong labels. Where it changed images there are none.

    The form is ours. The search objective of Cadet et al. 2024 (arXiv:2410.01276) is near: gaps to the retrained
    model's accuracies and the distance of an attack from blindness, which needs no reference. The first two are
    one-sided, as unlearning that makes the model better is no fault. It never looks at the test set, not even in
    finals. ``context.extras`` has the original's accuracies. Retraining itself does not get 0: see the value of the
    retrained model.

    How far to trust it (``jobs/retrained_free_agreement.py`` on the rows in ``results/``): Kendall's tau against
    ``distance_validation`` over the settings of a search is 0.97 in the median for classes (114 searches), 0.90 for
    wrong labels (9), but 0.52 for random samples (12), where good settings differ by less than it can see; the
    setting it picks is 0.000, 0.000 and 0.005 further from the retrained model than the best one, in the median.
    """
    gaps = []
    for split in KEPT:
        original = context.extras.get(f"original_{split}_accuracy")
        if original is None:
            raise MetricUnavailable(f"needs the original model's {split} accuracy, which this row does not have")
        gaps.append(max(0.0, original - accuracy(outputs, split)))
    expected, unseen = _never_seen(outputs, context)
    gaps.append(abs(accuracy(outputs, "forget") - expected))
    gaps.append(abs(attack_auc(usable(outputs, "forget").losses, unseen) - 0.5))
    return sum(gaps) / len(gaps)


def _never_seen(outputs: Outputs, context: MetricContext) -> tuple[float, Tensor]:
    """What a model that has never met D_f would do on it: accuracy, and losses [m] of unseen samples of its kind."""
    if context.extras.get("forget_images_replaced"):
        raise MetricUnavailable("the request changed the images of D_f, so there are no unseen samples of their kind")
    if context.forget_classes:
        return 0.0, usable(outputs, "validation_forgotten").losses
    held_out, right = usable(outputs, "validation"), accuracy(outputs, "validation")
    if not context.extras.get("forget_labels_replaced"):
        return right, held_out.losses
    # A wrong answer is one of the K - 1 wrong labels.
    return (1.0 - right) / (context.num_classes - 1), _wrong_label_losses(held_out)


def _wrong_label_losses(split: SplitOutputs) -> Tensor:
    """Cross-entropy of every sample with each label that is not its own, float64 [n (K - 1)]."""
    wrong = torch.ones_like(split.log_probabilities, dtype=torch.bool).scatter(1, split.labels[:, None], False)
    return -split.log_probabilities[wrong]
