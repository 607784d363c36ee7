"""Population membership attack on the loss: the forget set against never-trained samples of the same classes.

Read them two-sidedly. D_f with lower losses than unseen data is under-forgotten; with higher losses it is
over-forgotten, and gives itself away as well. The value to meet is the retrained model's. All compare samples
inside one model, so they are cheap and weak: they say nothing about the leakage of a single sample.
"""

from __future__ import annotations

import dataclasses
import math

from raybench.mechanisms.attacks import attack_accuracy, attack_auc, attack_balanced_accuracy, attack_tpr
from raybench.metrics._splits import unseen, usable
from raybench.outputs import MetricContext, Outputs
from raybench.registry import CLASSIFICATION, DENOISING, METRICS, Attack

BOTH = {CLASSIFICATION, DENOISING}  # any loss per sample will do
FALSE_POSITIVE_RATE = 0.01
LOW_FALSE_POSITIVE_RATE = 0.001
SIDES = "D_f against held-out of the same classes"
THRESHOLD = Attack("threshold", "loss", "nothing: every threshold", SIDES, "area under the ROC curve, member positive")
REGRESSION = Attack(
    attack="logistic regression, L2 with C = 1, ten random splits",
    score="loss",
    fit_on=f"nine tenths of {SIDES}, equal sizes",
    apply_to="the other tenth",
    reported_quantity="mean accuracy over the splits",
)


@METRICS.register("loss_attack_auc", label="Loss attack AUC", paper="arXiv:1709.01604", attack=THRESHOLD, tasks=BOTH)
def loss_attack_auc(outputs: Outputs, context: MetricContext) -> float:
    """Probability that a random forget sample has a lower loss than a random unseen one, ties one half.

    0.5: indistinguishable; above: D_f still looks trained on; below: over-forgotten. Yeom et al. 2018.
    """
    return attack_auc(usable(outputs, "forget").losses, unseen(outputs, context).losses)


@METRICS.register(
    "loss_attack_accuracy",
    label="Loss attack accuracy",
    paper="arXiv:2302.09880",
    attack=REGRESSION,
    tasks=BOTH,
    fits=True,
)
def loss_attack_accuracy(outputs: Outputs, context: MetricContext) -> float:
    """Cross-validated accuracy of a logistic regression on the loss, D_f against as many unseen samples.

    SCRUB's "basic MIA" and the challenge's starting kit; 0.5: blind, and over-forgetting too gives more than
    0.5. Deviation: the equal-sized subsets are drawn by rank of the loss, so sample order cannot matter.
    """

    def attack() -> float:
        return attack_accuracy(usable(outputs, "forget").losses, unseen(outputs, context).losses, context.evaluate_seed)

    key = ("loss_attack_accuracy", context.held_out, context.forget_classes, context.evaluate_seed)
    return outputs.remember(key, attack)


@METRICS.register(
    "loss_attack_balanced_accuracy",
    label="Loss attack balanced accuracy",
    paper="arXiv:1709.01604",
    attack=dataclasses.replace(
        THRESHOLD, fit_on="D_r: its mean loss is the threshold", reported_quantity="balanced accuracy"
    ),
    tasks=BOTH,
)
def loss_attack_balanced_accuracy(outputs: Outputs, context: MetricContext) -> float:
    """Balanced accuracy of "member if the loss is below the mean loss of the retain set", D_f against unseen samples.

    The one threshold that Yeom et al. 2018 use; 0.5: blind. D_r stands for the training set, as D_f is judged.
    """
    losses = usable(outputs, "retain").losses.tolist()
    threshold = math.fsum(losses) / len(losses)  # exact, so the order of the samples cannot move it
    return attack_balanced_accuracy(usable(outputs, "forget").losses, unseen(outputs, context).losses, threshold)


@METRICS.register(
    "loss_attack_tpr",
    label="Loss attack TPR at 1 % FPR",
    paper="arXiv:2112.03570",
    attack=dataclasses.replace(THRESHOLD, reported_quantity="share of D_f found at 1 % false positives"),
    tasks=BOTH,
)
def loss_attack_tpr(outputs: Outputs, context: MetricContext) -> float:
    """Share of D_f found by the loss threshold that accuses at most 1 % of the unseen samples; blind: 0.01."""
    return attack_tpr(usable(outputs, "forget").losses, unseen(outputs, context).losses, FALSE_POSITIVE_RATE)


@METRICS.register(
    "loss_attack_tpr_permille",
    label="Loss attack TPR at 0.1 % FPR",
    paper="arXiv:2112.03570",
    attack=dataclasses.replace(THRESHOLD, reported_quantity="share of D_f found at 0.1 % false positives"),
    tasks=BOTH,
)
def loss_attack_tpr_permille(outputs: Outputs, context: MetricContext) -> float:
    """Share of D_f found by the loss threshold that accuses at most 0.1 % of the unseen samples; blind: 0.001.

    Needs 1000 unseen samples of the same classes; with that many it rests on a single one, so read it over seeds.
    """
    return attack_tpr(usable(outputs, "forget").losses, unseen(outputs, context).losses, LOW_FALSE_POSITIVE_RATE)
