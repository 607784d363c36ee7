"""Membership attacks as pure functions of a few numbers per sample. No model, no split names, no state.

Every function is invariant to the order of the samples: where a subset must be drawn, the values are sorted
first, so a seed picks ranks and not positions. Equal values are exchangeable, hence nothing else can matter.
An attack that cannot be run on its input raises ``MetricUnavailable`` with the reason.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raybench.errors import MetricUnavailable
from raybench.seeding import derive_seed, numpy_generator

FOLDS = 10
TEST_SHARE = 0.1
LOSS_CLIP = 100.0
SVC_C = 3.0


def attack_auc(members: Tensor, non_members: Tensor) -> float:
    """Probability that a random member has the lower score, ties counting one half.

    ``members`` [n] and ``non_members`` [m] hold losses (low = looks like a member). The exact Mann-Whitney
    statistic: the pairs are counted in integers, so equal inputs give equal floats. In [0, 1], 0.5 = blind.
    Threshold attack of Yeom et al. 2018 (arXiv:1709.01604), all thresholds at once.
    """
    _require_sides(members, non_members, least=2)
    _require_spread(torch.cat([members, non_members]).numpy())
    ranked = non_members.sort().values
    not_above = torch.searchsorted(ranked, members.contiguous(), right=True)
    below = torch.searchsorted(ranked, members.contiguous(), right=False)
    above = ranked.numel() - not_above
    wins_twice = int((2 * above + (not_above - below)).sum())
    return wins_twice / (2 * members.numel() * ranked.numel())


def attack_tpr(members: Tensor, non_members: Tensor, false_positive_rate: float) -> float:
    """Largest share of members found by a loss threshold that accuses at most ``false_positive_rate`` of the
    non-members (the step-wise ROC curve, no interpolation). ``members`` [n], ``non_members`` [m]: losses.

    Reporting at a low false positive rate follows Carlini et al. 2022 (arXiv:2112.03570), section III.
    """
    # With fewer, the only admissible number of false alarms is zero: a different metric under the same name.
    _require_sides(members, non_members, least=2, least_non_members=round(1 / false_positive_rate))
    _require_spread(torch.cat([members, non_members]).numpy())
    ranked = non_members.sort().values
    # The epsilon keeps 0.01 * 700 = 7.000000000000001 and its likes on the right side of floor.
    allowed = int(false_positive_rate * ranked.numel() + 1e-9)
    # "loss <= tau" accuses at most ``allowed`` non-members exactly when tau < the (allowed + 1)-th smallest loss.
    return float((members < ranked[allowed]).double().mean()) if allowed < ranked.numel() else 1.0


def attack_accuracy(members: Tensor, non_members: Tensor, seed: int) -> float:
    """Mean accuracy of a cross-validated logistic regression that tells the losses of two groups apart.

    ``members`` [n] and ``non_members`` [m]: losses, clipped to [-100, 100]. The larger group is sub-sampled to
    the size of the smaller; ten stratified random splits with a 10 % test share; scikit-learn's default
    regularisation (L2, C = 1). As in SCRUB (Kurmanji et al. 2023, arXiv:2302.09880) and the starting kit of
    the NeurIPS 2023 unlearning challenge, which uses ten splits where SCRUB uses five.
    """
    from sklearn.linear_model import LogisticRegression  # 2.5 s when cold: only who attacks pays
    from sklearn.model_selection import StratifiedShuffleSplit

    _require_sides(members, non_members, least=FOLDS)
    size = min(members.numel(), non_members.numel())
    groups = [
        _draw(side.clamp(-LOSS_CLIP, LOSS_CLIP), size, seed, "attack_accuracy", role)
        for role, side in (("members", members), ("non_members", non_members))
    ]
    feature = np.concatenate(groups)
    _require_spread(feature)
    label = np.repeat([1, 0], size)
    folds = StratifiedShuffleSplit(
        n_splits=FOLDS, test_size=TEST_SHARE, random_state=derive_seed("attack_accuracy", "folds", seed) % 2**32
    )
    scores = []
    for fit, test in folds.split(feature, label):
        attacker = LogisticRegression(max_iter=1000).fit(feature[fit], label[fit])
        scores.append(float(attacker.score(feature[test], label[test])))
    return float(np.mean(scores))


def attack_balanced_accuracy(members: Tensor, non_members: Tensor, threshold: float) -> float:
    """Mean of the share of ``members`` [n] with a loss below ``threshold`` and of ``non_members`` [m] not below it.

    In [0, 1], 0.5 = blind, whatever the sizes of the two. Yeom et al. 2018 (arXiv:1709.01604).
    """
    _require_sides(members, non_members, least=2)
    _require_spread(torch.cat([members, non_members]).numpy())
    if not math.isfinite(threshold):
        raise MetricUnavailable(f"the attack needs a finite threshold, got {threshold}")
    found = int((members < threshold).sum()) / members.numel()
    cleared = int((non_members >= threshold).sum()) / non_members.numel()
    return (found + cleared) / 2


def judged_non_member(members: Tensor, non_members: Tensor, targets: Tensor, seed: int, at_most: int = 1000) -> float:
    """Share of ``targets`` that an RBF support vector machine (C = 3, gamma = 1 / number of features), fitted on
    ``members`` and ``non_members``, takes for non-members. Each [samples], or [samples, features].

    Both fit sets are sub-sampled to the same size, at most ``at_most``: fitting costs the square of it.
    """
    _require_sides(members, non_members, least=2)
    size = min(len(members), len(non_members), at_most)
    groups = [
        _draw(side, size, seed, "judged_non_member", role)
        for role, side in (("members", members), ("non_members", non_members))
    ]
    return float(np.mean(_support_vectors(*groups).predict(_columns(targets)) == 0))


def told_apart(members: Tensor, non_members: Tensor, seed: int, at_most: int = 1000) -> float:
    """Balanced accuracy of the same support vector machine on samples that it was not fitted on.

    ``members`` [n] or [n, d], ``non_members`` [m] or [m, d]. Fitted on half of the non-members and as many members
    (at most half of those, and ``at_most``); judged are the other half of the non-members and all remaining members.
    In [0, 1], 0.5 = blind.
    """
    _require_sides(members, non_members, least=4)
    size = min(len(members) // 2, len(non_members) // 2, at_most)
    fit, rest = [], []
    for role, side in (("members", members), ("non_members", non_members)):
        ranked = _ranked(side)
        order = numpy_generator("told_apart", role, seed).permutation(len(ranked))
        fit.append(ranked[np.sort(order[:size])])
        rest.append(ranked[np.sort(order[size if role == "members" else len(ranked) // 2 :])])
    attacker = _support_vectors(*fit)
    shares = [float(np.mean(attacker.predict(side) == label)) for side, label in zip(rest, (1, 0), strict=True)]
    return sum(shares) / 2


def judged_member(members: Tensor, non_members: Tensor, targets: Tensor) -> float:
    """Share of ``targets`` [t] that a logistic regression, fitted on all ``members`` [n] and ``non_members`` [m] with
    classes weighted to balance, takes for members. One feature per sample; scikit-learn's L2 with C = 1."""
    from sklearn.linear_model import LogisticRegression

    _require_sides(members, non_members, least=2)
    groups = [_ranked(side) for side in (members, non_members)]
    feature = np.concatenate(groups)
    _require_spread(feature)
    label = np.repeat([1, 0], [len(group) for group in groups])
    attacker = LogisticRegression(class_weight="balanced", max_iter=1000).fit(feature, label)
    return float(np.mean(attacker.predict(_columns(targets)) == 1))


def _support_vectors(members: np.ndarray, non_members: np.ndarray) -> Any:
    from sklearn.svm import SVC

    feature = np.concatenate([members, non_members])
    _require_spread(feature)
    label = np.repeat([1, 0], [len(members), len(non_members)])
    return SVC(C=SVC_C, kernel="rbf", gamma="auto").fit(feature, label)


def _columns(values: Tensor) -> np.ndarray:
    """float64 [samples, features] of [samples] or [samples, features]."""
    return values.double().reshape(len(values), -1).numpy()


def _ranked(values: Tensor) -> np.ndarray:
    """The same in ascending order, the first feature first: what the order of the samples cannot change."""
    columns = _columns(values)
    return np.asarray(columns[np.lexsort(columns.T[::-1])])


def _draw(values: Tensor, size: int, seed: int, *key: str) -> np.ndarray:
    """``size`` of the samples, drawn by rank without replacement, ascending, float64 [size, features]."""
    ranked = _ranked(values)
    picked = numpy_generator(*key, seed).choice(len(ranked), size=size, replace=False)
    return np.asarray(ranked[np.sort(picked)])


def _require_sides(members: Tensor, non_members: Tensor, least: int, least_non_members: int = 0) -> None:
    for role, side, fewest in (
        ("members", members, least),
        ("non-members", non_members, max(least, least_non_members)),
    ):
        if len(side) < fewest:
            raise MetricUnavailable(f"the attack needs at least {fewest} {role}, got {len(side)}")
        if torch.isnan(side).any():
            raise MetricUnavailable(f"the attack scores of the {role} contain NaN")


def _require_spread(scores: np.ndarray) -> None:
    if (scores == scores[0]).all():
        raise MetricUnavailable("the attack scores are constant: every sample looks the same to it")
