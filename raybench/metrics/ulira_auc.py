"""U-LiRA, the strong per-example audit: can models that unlearned D_f be told from models that never saw it?

Hayes et al. 2025 (SaTML, arXiv:2403.01218) and Kurmanji et al. 2023 (SCRUB, arXiv:2302.09880); the arithmetic and its
deviations are in ``mechanisms.likelihood_ratio``. Unlearned world: ``oracles`` originals of other seeds, each of them
unlearned by the row's method and setting; gold world: as many retrained models. Every forget sample is a target in
every model, so a method costs its own unlearning runs and no further training. Fixed D_f: the worlds vary the seeds of
training and unlearning, not the forget set.
"""

from __future__ import annotations

from raybench.errors import MetricUnavailable
from raybench.mechanisms.likelihood_ratio import Audit, ulira
from raybench.metrics._worlds import phi_of
from raybench.outputs import MetricContext, Worlds
from raybench.registry import METRICS, WORLDS, Attack

FALSE_POSITIVE_RATE = 0.01
ATTACK = {
    "attack": "U-LiRA",
    "score": "log-likelihood ratio of phi under normal fits to both worlds, global variance",
    "fit_on": "both worlds without the two models attacked",
    "apply_to": "D_f under an unlearned model against D_f under a retrained one",
}
PAPER = "arXiv:2403.01218"


@METRICS.register(
    "ulira_auc",
    label="U-LiRA AUC",
    paper=PAPER,
    final_only=True,
    pool=WORLDS,
    attack=Attack(**ATTACK, reported_quantity="AUC, positives unlearned"),
)
def ulira_auc(worlds: Worlds, context: MetricContext) -> float:
    """Probability that a forget sample looks more unlearned under an unlearned model than under a retrained one.

    Mean over all pairs of models, each left out of the fits. 0.5: cannot be told apart.
    """
    return float(_audit(worlds).auc.mean())


@METRICS.register(
    "ulira_accuracy",
    label="U-LiRA balanced accuracy",
    paper=PAPER,
    final_only=True,
    pool=WORLDS,
    attack=Attack(**ATTACK, reported_quantity="balanced accuracy at likelihood ratio 1"),
)
def ulira_accuracy(worlds: Worlds, context: MetricContext) -> float:
    """Share of right guesses at likelihood ratio 1 over samples and pairs of models; 0.5: cannot be told apart."""
    return float(_audit(worlds).accuracy.mean())


@METRICS.register(
    "ulira_tpr",
    label="U-LiRA TPR at 1 % FPR",
    paper=PAPER,
    final_only=True,
    pool=WORLDS,
    attack=Attack(**ATTACK, reported_quantity="share of D_f recognised at 1 % false alarms"),
)
def ulira_tpr(worlds: Worlds, context: MetricContext) -> float:
    """Share of forget samples recognised as unlearned where 1 % of the never seen are called so; blind: 0.01."""
    found = _audit(worlds, FALSE_POSITIVE_RATE).tpr
    if found is None:
        raise MetricUnavailable("U-LiRA gave no true positive rate")
    return float(found.mean())


@METRICS.register(
    "ulira_worst",
    label="U-LiRA accuracy, worst 5 % of samples",
    paper=PAPER,
    final_only=True,
    pool=WORLDS,
    attack=Attack(**ATTACK, reported_quantity="95th percentile over D_f of the accuracy on one sample"),
)
def ulira_worst(worlds: Worlds, context: MetricContext) -> float:
    """95th percentile over the forget samples of the audit's accuracy on that sample.

    The average hides the few that a method fails on. Biased above 0.5 by the percentile: read it beside the retrained
    value, gold against gold, which has half as many models and so reads a little higher still.
    """
    return float(_audit(worlds).examples.quantile(0.95))


def _audit(worlds: Worlds, false_positive_rate: float | None = None) -> Audit:
    return ulira(*phi_of(worlds, "forget"), false_positive_rate=false_positive_rate)
