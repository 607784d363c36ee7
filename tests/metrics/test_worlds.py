"""Metrics of whole worlds of models, and LiRA: what they hand to the arithmetic of ``mechanisms``, and what they say
of worlds whose answer is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from raybench.errors import MetricUnavailable
from raybench.evaluation import measure
from raybench.mechanisms.challenge import forgetting_quality
from raybench.mechanisms.klom import klom
from raybench.mechanisms.likelihood_ratio import ulira
from raybench.outputs import DRAWS, MetricContext, Outputs, SplitOutputs, Worlds
from raybench.registry import HALF_WORLDS, METRICS, WHOLE_WORLDS

ENTRIES = [entry for entry in METRICS if entry.pool in WHOLE_WORLDS]
every_metric = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
SIZES = {"retain": 60, "forget": 120, "validation": 50, "test": 40}


def model(seed: int, shift: float = 0.0) -> Outputs:
    """One of many models: two logits, whose difference is phi; the examples differ, ``shift`` moves D_f."""
    draw, splits = torch.Generator().manual_seed(seed), {}
    for place, (name, size) in enumerate(SIZES.items()):
        centre = 2 * torch.randn(size, generator=torch.Generator().manual_seed(1000 + place)) + 1
        phi = centre + torch.randn(size, generator=draw) + (shift if name == "forget" else 0.0)
        splits[name] = SplitOutputs(torch.stack([phi, torch.zeros(size)], dim=1), torch.zeros(size, dtype=torch.int64))
    return Outputs(splits)


def world(first: int, count: int, shift: float = 0.0) -> list[Outputs]:
    return [model(first + i, shift) for i in range(count)]


def context(unlearned: Sequence[Outputs], gold: Sequence[Outputs], seed: int = 0) -> MetricContext:
    return MetricContext(num_classes=2, worlds=lambda: Worlds(unlearned, gold, seed))


def measured(name: str, where: MetricContext) -> tuple[dict[str, float | None], dict[str, str]]:
    return measure([name], model(0), model(1), where, pooled=True)


@pytest.fixture(scope="module")
def gold() -> list[Outputs]:
    return world(0, 24)


@every_metric
def test_worlds_that_are_alike_and_worlds_that_are_not(entry, gold) -> None:
    alike, apart = (measured(entry.name, context(world(100, 24, shift), gold))[0] for shift in (0.0, 3.0))
    name = entry.name
    assert alike[f"{name}_retrained"] == apart[f"{name}_retrained"]
    if name not in ("klom_retain", "klom_validation"):  # D_f alone was moved
        assert abs(alike[f"{name}_gap"]) < 0.25 * abs(apart[f"{name}_gap"])
    else:
        assert alike[name] == apart[name]
    low, high = entry.range
    for value in (alike[name], apart[name]):
        assert low is None or value >= low
        assert high is None or value <= high


@every_metric
def test_a_retrained_models_row_is_gold_against_gold(entry, gold) -> None:
    columns, missing = measured(entry.name, context(gold, gold, seed=7))
    assert not missing
    # Other halves of the same world: near the retrained value, and not the same draw of it.
    assert 0 < abs(columns[f"{entry.name}_gap"]) < 0.1 + 0.1 * columns[entry.name]
    again, _ = measured(entry.name, context(gold, gold, seed=0))
    assert again[f"{entry.name}_gap"] == 0.0


def test_ulira_against_its_closed_form(gold) -> None:
    # phi is normal with variance 1 in both worlds and D_f is moved by d: the log-likelihood ratio is normal too, with
    # means +-d^2/2 and variance d^2, so AUC = Phi(d / sqrt 2). Fits to 23 models cost a little.
    for shift in (0.5, 1.0, 2.0):
        value = measured("ulira_auc", context(world(100, 24, shift), gold))[0]["ulira_auc"]
        assert value == pytest.approx(norm.cdf(shift / math.sqrt(2)), abs=0.04)


def test_what_the_arithmetic_gets(gold) -> None:
    ours = world(100, 24, 1.0)
    phi = [torch.stack([m["forget"].logits[:, 0].double() for m in side]) for side in (ours, gold)]
    where = context(ours, gold)
    assert measured("ulira_auc", where)[0]["ulira_auc"] == float(ulira(*phi).auc.mean())
    draws = Worlds(ours, gold).halves()
    assert len(draws) == DRAWS
    for name, statistic in (
        ("klom", lambda u, g: float(klom(u, g).mean())),
        ("forgetting_quality", forgetting_quality),
    ):
        sides = [
            [torch.stack([m["forget"].logits[:, 0].double() for m in side]) for side in (d.unlearned, d.gold)]
            for d in draws
        ]
        expected = np.mean([statistic(*pair) for pair in sides])
        assert measured(name, where)[0][name] == pytest.approx(expected)


def test_halves_are_of_one_size_and_those_of_the_gold_world_are_disjoint(gold) -> None:
    worlds = Worlds(world(100, 30), gold, 3)
    assert all(len(d.unlearned) == len(d.gold) == 12 for d in worlds.halves())
    assert all(not {*map(id, d.unlearned)} & {*map(id, d.gold)} for d in worlds.gold_halves())
    ids = [{*map(id, d.gold)} for d in worlds.gold_halves()]
    assert len({frozenset(found) for found in ids}) == DRAWS


@every_metric
def test_the_order_of_samples_and_models_does_not_matter(entry, gold) -> None:
    def shuffled(outputs: Outputs) -> Outputs:
        splits = {}
        for name, split in outputs.items():
            order = torch.randperm(len(split), generator=torch.Generator().manual_seed(1))
            splits[name] = SplitOutputs(split.logits[order], split.labels[order])
        return Outputs(splits)

    ours = world(100, 24, 1.0)
    value = measured(entry.name, context(ours, gold))[0][entry.name]
    other = measured(entry.name, context([shuffled(m) for m in ours], [shuffled(m) for m in gold]))[0][entry.name]
    assert other == pytest.approx(value, abs=1e-12)
    if entry.pool != HALF_WORLDS:  # which models a random half holds goes by their number
        assert measured(entry.name, context(ours[::-1], gold[::-1]))[0][entry.name] == pytest.approx(value, abs=1e-12)


@every_metric
def test_too_few_models_and_broken_ones_have_a_reason(entry, gold) -> None:
    for ours, theirs, reason in (
        ([], gold, "set oracles in the spec"),
        (gold[:2], gold[2:4], "at least"),
        ([*world(100, 11), broken(3)], gold[:12], "NaN or infinite|at least"),
    ):
        columns, missing = measured(entry.name, context(ours, theirs))
        assert columns[entry.name] is None
        assert missing[entry.name]
        assert any(word in missing[entry.name] for word in reason.split("|")), missing
    assert "set oracles" in measured(entry.name, MetricContext(num_classes=2))[1][entry.name]


def broken(seed: int) -> Outputs:
    outputs = model(seed)
    for split in outputs.values():
        split.logits[0, 0] = math.nan
    return outputs


@every_metric
def test_a_trial_itself_does_not_measure_it(entry, gold) -> None:
    columns, missing = measure([entry.name], model(0), model(1), context(gold, gold))
    assert columns[entry.name] is None
    assert "after the finals" in missing[entry.name]


def test_lira_by_its_definition() -> None:
    ours, pool = model(5, 1.0), world(50, 6)
    where = MetricContext(num_classes=2, oracles=lambda: pool)
    phi = {
        name: np.array([m[name].logits[:, 0].double().numpy() for m in [ours, *pool]]) for name in ("forget", "test")
    }
    outside = np.concatenate([phi["forget"][1:], phi["test"][1:]], axis=1)
    spread = np.sqrt((outside - outside.mean(axis=0)).__pow__(2).sum() / (outside.size - outside.shape[1]))
    own = np.concatenate([phi["forget"][0], phi["test"][0]])
    score = (own - outside.mean(axis=0)) / spread
    truth = [1] * SIZES["forget"] + [0] * SIZES["test"]
    value = METRICS["lira_auc"].fn(ours, where)
    assert value == pytest.approx(roc_auc_score(truth, score), abs=1e-12)
    # Moved by one standard deviation, against the mean of six: AUC = Phi(1 / sqrt(2 + 2/6)) up to sampling.
    assert value == pytest.approx(norm.cdf(1 / math.sqrt(2 * (1 + 1 / 6))), abs=3 * 0.05)
    with pytest.raises(MetricUnavailable, match="set oracles in the spec"):
        METRICS["lira_auc"].fn(ours, MetricContext(num_classes=2))
