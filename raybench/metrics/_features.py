"""What membership attacks see of a sample beside its loss, and the support vector machine of the l1-sparse family."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from raybench.mechanisms.attacks import judged_non_member
from raybench.metrics._splits import usable
from raybench.outputs import MetricContext, Outputs, SplitOutputs
from raybench.registry import Attack

LARGEST = 100.0  # nats; a class switched off by minus infinity has an infinite loss, and no machine fits that


def support_vector_attack(score: str) -> Attack:
    """The record of the family: all but the score is the same."""
    return Attack(
        attack="RBF support vector machine, C = 3, gamma = 1 / number of features",
        score=score,
        fit_on="D_r against held-out (remaining classes in class scenarios), equal sizes, at most 1000 each",
        apply_to="D_f",
        reported_quantity="share of D_f judged non-member",
    )


def share_judged_non_member(
    outputs: Outputs, context: MetricContext, feature: Callable[[SplitOutputs], Tensor]
) -> float:
    """The attack of the family on one feature, [n] or [n, d]; the samples that it is fitted on are in the record."""

    def attack() -> float:
        return judged_non_member(
            members=feature(usable(outputs, "retain")),
            non_members=feature(usable(outputs, context.held_out)),
            targets=feature(usable(outputs, "forget")),
            seed=context.evaluate_seed,
        )

    return outputs.remember(("judged_non_member", feature, context.held_out, context.evaluate_seed), attack)


def confidences(split: SplitOutputs) -> Tensor:
    """Probability of the true label, float64 [n]."""
    return split.confidences


def correctness(split: SplitOutputs) -> Tensor:
    """1 where the prediction is the label, else 0, float64 [n]."""
    return split.correct.double()


def probabilities(split: SplitOutputs) -> Tensor:
    """The whole softmax, float64 [n, K]."""
    return split.probabilities


def entropies(split: SplitOutputs) -> Tensor:
    """-sum_k p_k log p_k in nats, float64 [n]; it does not look at the label."""
    terms: Tensor = torch.special.entr(split.probabilities)
    return terms.sum(dim=1)


def modified_entropies(split: SplitOutputs) -> Tensor:
    """-(1 - p_y) log p_y - sum_{k != y} p_k log(1 - p_k) in nats, at most 100, float64 [n].

    The modified prediction entropy of Song and Mittal 2021 (arXiv:2003.10595): small only where the model is certain
    *and* right. The complement of the largest probability is summed from the others, as 1 - p would round to 0.
    """
    log_p, p = split.log_probabilities, split.probabilities
    top = log_p.argmax(dim=1, keepdim=True)
    others = log_p.scatter(1, top, -torch.inf)
    log_complement = torch.log1p(-p).scatter(1, top, others.logsumexp(dim=1, keepdim=True))
    label = split.labels[:, None]
    of_label = log_complement.gather(1, label).exp() * log_p.gather(1, label)
    of_others = (p * log_complement).scatter(1, label, 0.0).sum(dim=1, keepdim=True)
    return -(of_label + of_others).squeeze(1).clamp(min=-LARGEST)
