"""Certified removal: a convex head trained with a random linear term, from which samples leave by Newton steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from optuna.distributions import IntDistribution
from torch import Tensor, nn

from raybench.mechanisms.newton_removal import gradient, gradient_budget
from raybench.mechanisms.perturbed_heads import fit_perturbed, remove_within
from raybench.mechanisms.unit_features import UnitFeatures, one_against_rest, set_head, unit_rows
from raybench.passes import count_products
from raybench.registry import FORGET, METHODS, RETAIN
from raybench.space import nuisance
from raybench.task import UnlearningTask
from raybench.training import Trained, TrainingJob, train_standard

CHECKPOINTS = 10


@dataclass(frozen=True)
class CertifiedRemovalTraining:
    """Own training of the original model. ``l2`` and ``sigma``: the paper's code for MNIST's 3 against 8."""

    extractor: Literal["random", "trained"] = "random"
    """``random``: the untrained network, its weights from the seed alone, so that the certificate holds. ``trained``:
    the standard training, then frozen; it has seen what is to be forgotten, so nothing is certified."""
    l2: float = 1e-3
    """lambda: the penalty is lambda n / 2 ||w||^2 (their code spans 1e-6 to 1e-1)."""
    sigma: float = 10.0
    """Standard deviation of b. The budget grows with it in proportion, and so does the damage to accuracy: the
    smaller the training split, the less of it one can afford."""
    rounds: int = 100
    """Most rounds of 20 L-BFGS iterations."""

    def __post_init__(self) -> None:
        if not self.l2 > 0.0 or not self.sigma >= 0.0 or self.rounds < 1:
            raise ValueError(f"l2 must be > 0, sigma >= 0, rounds >= 1, got {self.l2}, {self.sigma}, {self.rounds}")


@METHODS.training(
    "certified_removal",
    hparams=CertifiedRemovalTraining,
    network=lambda build, hparams: UnitFeatures(build()),
    label="Perturbed convex head",
    paper="arXiv:1911.03030",
)
def train_convex_head(job: TrainingJob) -> Trained:
    """Guo et al. 2020, Sections 3.2 and 3.3: K one-against-rest logistic heads without bias on features of norm 1.

    Images are not augmented for the head; batch norm is read. Artefacts: ``weights`` and ``b`` float64 [d, K] (b is a
    secret of the owner), ``l2``, ``sigma``, ``rounds``, ``public`` (1 for random features) and ``gradient_norm`` of
    what L-BFGS left. Cost: N forward passes beside the extractor's training.
    """
    hp: CertifiedRemovalTraining = job.hparams
    body = train_standard(job).model if hp.extractor == "trained" else job.new_model()
    model = UnitFeatures(body).to(job.device).eval().requires_grad_(False)
    x, y = unit_rows(model, job.train), one_against_rest(job.train.targets, job.num_classes)
    b, heads = fit_perturbed(model, x, y, hp.l2, hp.sigma, hp.rounds, job.generator)
    set_head(model, heads.weights)
    numbers = {"l2": hp.l2, "sigma": hp.sigma, "rounds": hp.rounds, "public": hp.extractor == "random"}
    kept = {name: torch.tensor(float(value), dtype=torch.float64) for name, value in numbers.items()}
    return Trained(model, {"weights": heads.weights, "b": b, "gradient_norm": heads.bounds.norm(), **kept})


@dataclass(frozen=True)
class CertifiedRemovalHparams:
    """``epsilon`` and ``delta`` are what is asked for and so never searched: a search would loosen them."""

    removals_per_step: Annotated[int, nuisance(IntDistribution(1, 256, log=True))] = 1
    """Samples a Newton step takes out: 1 is the paper's. What a step adds to the gradient grows with the square of
    it, what one request costs falls in proportion."""
    epsilon: float = 1.0
    """Of the certificate; the paper looks at 0.1 to 10."""
    delta: float = 1e-4
    """Of the certificate."""

    def __post_init__(self) -> None:
        if self.removals_per_step < 1 or not self.epsilon > 0.0 or not 0.0 < self.delta < 1.0:
            got = f"got {self.removals_per_step}, {self.epsilon} and {self.delta}"
            raise ValueError(f"removals_per_step must be at least 1, epsilon above 0 and delta in (0, 1), {got}")


@METHODS.register(
    "certified_removal",
    hparams=CertifiedRemovalHparams,
    label="Certified removal",
    version=2,
    paper="arXiv:1911.03030",
    needs={FORGET, RETAIN},
    training="certified_removal",
    tiny={"removals_per_step": 16, "epsilon": 1e6},
    complexity="N_f (n d^2 + d^3) K, no passes but for the features",
    batch_norm="read",
)
def certified_removal(task: UnlearningTask, hp: CertifiedRemovalHparams) -> nn.Module:
    """w <- w + H^-1 Delta for one group of samples after the other (Guo et al. 2020, Equation 3, Algorithm 2).

    A certified removal *of the head, given a fixed extractor*. The gradient of L_b over the remaining samples is at
    most its norm before the first step (measured) plus the steps' data-dependent bounds; while that stays within
    sigma epsilon / c, c = sqrt(2 ln(1.5 / delta)), less for large epsilon (``gradient_budget``), the head is (epsilon,
    delta)-indistinguishable from one trained without the samples. A step that would break the budget is not taken: the
    head is fitted anew on D_r with a new b, on the clock, and the row's ``stop_reason`` is ``budget`` (else
    ``removed``); whole classes usually end there. Always reported: ``certified`` (1 for random features), ``removed``
    (by Newton steps). Where the certificate holds also ``epsilon``, ``delta``, ``budget``, ``bound``, ``worst_case``,
    and ``residual``, the gradient norm that is really there. Weights are float64, rounded for the model. Batch norm is
    read. Cost: N forward passes, then per step K Hessians of 2 n d^2 operations and K solutions.

    Deviations:
        - the K heads share one certificate: their b are one Gaussian vector, so their residuals are taken together by
          the Euclidean norm. The official code adds the K norms, which is never smaller.
        - the spectral norm is the exact one of the remaining rows' Gram matrix, down-dated once per step; the
          official code iterates from below and down-dates once per class, so that its bound comes out too small.
        - the gradient norm that the training left is part of the bound; the official code assumes the optimum.
        - for epsilon above about 5 the budget is below sigma epsilon / c, which does not keep delta there.
        - ``worst_case`` has what b adds to the weights, which Theorem 1 leaves out.
        - no negative sub-sampling (its SVHN setting) and no extractor trained with differential privacy.
        - once the budget is used up the head is fitted anew without all of D_f, also what was not yet its turn.
        - random features are covered since only the seed makes them; pixel mean and deviation are taken as public.
    """
    l2, sigma, rounds, public = (float(task.artefacts[name]) for name in ("l2", "sigma", "rounds", "public"))
    model, weights, b = task.model, task.artefacts["weights"].clone(), task.artefacts["b"].clone()
    parts = [task.retain, task.forget]
    x = torch.cat([unit_rows(model, part) for part in parts])  # remaining samples are always the first rows
    y = torch.cat([one_against_rest(part.targets, task.num_classes) for part in parts])
    kept, steps = len(task.retain), -(-len(task.forget) // hp.removals_per_step)
    budget = gradient_budget(sigma, hp.epsilon, hp.delta)

    def show(step: int, weights: Tensor) -> None:
        if step % -(-steps // CHECKPOINTS) == 0 and step < steps:
            set_head(model, weights)
            task.checkpoint(model, step)

    heads = remove_within(model, x, y, kept, weights, b, l2, budget, hp.removals_per_step, show)
    removed, reason, x, y = len(x) - heads.rows, "removed" if heads.rows == kept else "budget", x[:kept], y[:kept]
    if reason == "budget":
        b, heads = fit_perturbed(model, x, y, l2, sigma, int(rounds), task.generator)
    set_head(model, heads.weights)
    held = float(heads.bounds.norm())
    task.report({"certified": float(public and held <= budget), "removed": removed}, stop_reason=reason)
    if public and held <= budget:
        residual = float(gradient(x, y, heads.weights, l2, b).norm())
        count_products(model, 4.0 * x.numel() * task.num_classes)
        task.report({"epsilon": hp.epsilon, "delta": hp.delta, "budget": budget})
        task.report({"bound": held, "residual": residual, "worst_case": heads.worst_case})
    task.checkpoint(model, steps)
    return model
