"""Hyperparameters: types as YAML gives them, ranges, and settings that are functions of their index."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from scipy.stats import qmc

from raybench.errors import UserError
from raybench.registry import METHODS
from raybench.seeding import derive_seed
from raybench.space import (
    NUISANCE,
    SCIENTIFIC,
    default_point,
    field_docs,
    nuisance,
    resolve,
    sampled_point,
    scientific,
    search_space,
    searched,
)

RATE = FloatDistribution(1e-4, 1e-1, log=True)
STEPS = IntDistribution(1, 5)
MODE = CategoricalDistribution(["a", "b", "c"])


@dataclass(frozen=True)
class Hparams:
    rate: Annotated[float, scientific(RATE)] = 1e-2
    """How fast.

    Really.
    """
    steps: Annotated[int, nuisance(STEPS)] = 2
    """How long."""
    mode: Literal["a", "b", "c"] = "a"
    """Which way."""
    limit: float | None = None
    flag: bool = False
    milestones: tuple[float, ...] = (0.5,)
    """Where."""
    name: str = "x"

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError("steps must not be negative")


def test_marks_and_docs() -> None:
    marks = searched(Hparams)
    assert {name: (mark.distribution, mark.role) for name, mark in marks.items()} == {
        "rate": (RATE, SCIENTIFIC),
        "steps": (STEPS, NUISANCE),
    }
    docs = field_docs(Hparams)
    assert docs == {
        "rate": "How fast.\n\nReally.",
        "steps": "How long.",
        "mode": "Which way.",
        "milestones": "Where.",
    }


@dataclass(frozen=True)
class MoreHparams(Hparams):
    steps: Annotated[int, nuisance(STEPS)] = 2
    """How long, here."""
    extra: bool = False
    """Besides."""


def test_a_class_that_extends_another_has_its_fields_ranges_and_docs() -> None:
    assert list(searched(MoreHparams)) == list(searched(Hparams))
    own = {"steps": "How long, here.", "extra": "Besides."}
    assert field_docs(MoreHparams) == field_docs(Hparams) | own


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", Hparams()),
        ("rate: 1e-3", Hparams(rate=1e-3)),  # text in YAML 1.1
        ("rate: 1", Hparams(rate=1.0)),
        ("steps: 3.0", Hparams(steps=3)),
        ("limit: null", Hparams(limit=None)),
        ("limit: 2", Hparams(limit=2.0)),
        ("limit: 1e-3", Hparams(limit=1e-3)),
        ("mode: c", Hparams(mode="c")),
        ("flag: true", Hparams(flag=True)),
        ("milestones: [1, 1e-1]", Hparams(milestones=(1.0, 0.1))),
        ("milestones: 0.3", Hparams(milestones=(0.3,))),
        ("name: y", Hparams(name="y")),
    ],
)
def test_resolve_converts_what_yaml_gives(text: str, expected: Hparams) -> None:
    found = resolve(Hparams, yaml.safe_load(text), "m")
    assert found == expected
    for name in ("rate", "steps", "limit", "milestones"):
        assert type(getattr(found, name)) is type(getattr(expected, name))
    assert [type(v) for v in found.milestones] == [float] * len(found.milestones)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rte": 1.0}, r"parameter of m must be a registered name, got 'rte'; did you mean rate"),
        ({"rate": "fast"}, r"m\.rate must be of type float, got 'fast'"),
        ({"rate": True}, r"m\.rate must be of type float, got True"),
        ({"rate": None}, r"m\.rate must be of type float, got None"),
        ({"steps": 2.5}, r"m\.steps must be of type int, got 2\.5"),
        ({"steps": True}, r"m\.steps must be of type int"),
        ({"steps": "3"}, r"m\.steps must be of type int"),
        ({"limit": "no"}, r"m\.limit must be of type float \| None, got 'no'"),
        ({"mode": "d"}, r"m\.mode must be one of a, b, c, got 'd'"),
        ({"flag": 1}, r"m\.flag must be of type bool"),
        ({"milestones": ["x"]}, r"m\.milestones must be of type float"),
        ({"milestones": {"a": 1}}, r"m\.milestones must be of type tuple"),
        ({"name": 3}, r"m\.name must be of type str"),
        ({"steps": -1}, r"m: steps must not be negative"),
    ],
)
def test_resolve_refuses_in_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        resolve(Hparams, values, "m")
    assert "\n" not in str(caught.value)


def test_search_space_is_the_class_less_what_is_fixed() -> None:
    assert search_space(Hparams, {}, {}, "m") == {"rate": RATE, "steps": STEPS}
    assert search_space(Hparams, {"rate": 0.1}, {}, "m") == {"steps": STEPS}


def test_ranges_of_a_spec() -> None:
    ranges = yaml.safe_load(
        "{rate: {low: 1e-3, high: 1, log: true}, steps: {low: 2, high: 8, step: 2}, mode: [a, b],"
        " limit: {low: 0, high: 1, step: 2.5e-1}, flag: [true, false]}"
    )
    assert search_space(Hparams, {}, ranges, "m") == {
        "rate": FloatDistribution(1e-3, 1.0, log=True),
        "steps": IntDistribution(2, 8, step=2),
        "mode": CategoricalDistribution(["a", "b"]),
        "limit": FloatDistribution(0.0, 1.0, step=0.25),
        "flag": CategoricalDistribution([True, False]),
    }
    assert list(search_space(Hparams, {}, {"mode": ["b"], "rate": [0.1]}, "m")) == ["rate", "steps", "mode"]


@pytest.mark.parametrize(
    ("fixed", "ranges", "message"),
    [
        ({}, {"rate": {"low": 1.0, "high": 0.1}}, "must have low <= high, got low=1.0 high=0.1; swap them"),
        ({}, {"rat": [1.0]}, "did you mean rate"),
        ({"rate": 1.0}, {"rate": [1.0]}, "either fixed or searched"),
        ({}, {"rate": {"low": 1.0}}, r"range of m\.rate must be \{low, high"),
        ({}, {"rate": {"low": 0.0, "high": 1.0, "logg": True}}, "did you mean log"),
        ({}, {"rate": {"low": 0.0, "high": 1.0, "log": True}}, r"range of m\.rate"),
        ({}, {"rate": []}, "at least one value"),
        ({}, {"rate": ["x"]}, "type float"),
        ({}, {"steps": {"low": 1.5, "high": 3}}, "type int"),
        ({}, {"mode": {"low": "a", "high": "b"}}, "numbers as low and high"),
        ({}, {"limit": {"low": None, "high": 1}}, "numbers as low and high"),
        ({}, {"flag": {"low": False, "high": True}}, "numbers as low and high"),
        ({}, {"rate": {"low": 0.0, "high": 1.0, "step": "big"}}, "type float"),
        ({}, {"rate": 3}, "or a list of choices"),
    ],
)
def test_bad_ranges_are_one_line(fixed: dict[str, Any], ranges: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        search_space(Hparams, fixed, ranges, "m")
    assert "\n" not in str(caught.value)


def test_default_point() -> None:
    assert default_point(Hparams, search_space(Hparams, {}, {}, "m")) == {"rate": 1e-2, "steps": 2}
    assert default_point(Hparams, {}) == {}
    assert default_point(Hparams, {"rate": FloatDistribution(0.5, 1.0)}) is None
    assert default_point(Hparams, {"mode": CategoricalDistribution(["b"])}) is None
    assert default_point(Hparams, {"limit": FloatDistribution(0.0, 1.0)}) is None  # the default is None
    assert default_point(Hparams, {"steps": IntDistribution(1, 5, step=2)}) is None  # between 1 and 3

    @dataclass(frozen=True)
    class Needed:
        x: float
        y: list[float] = field(default_factory=list)

    assert default_point(Needed, {"x": FloatDistribution(0.0, 1.0)}) is None


SPACE = {
    "rate": RATE,
    "steps": STEPS,
    "mode": MODE,
    "even": IntDistribution(2, 8, step=2),
    "tenth": FloatDistribution(0.0, 1.0, step=0.1),
}


@pytest.mark.parametrize("sampler", ["random", "grid", "qmc"])
def test_settings_are_functions_of_their_index_that_optuna_takes(sampler: str) -> None:
    forward = [sampled_point(sampler, SPACE, i, 16, "s") for i in range(16)]
    backward = [sampled_point(sampler, SPACE, i, 16, "s") for i in reversed(range(16))]
    assert forward == backward[::-1]
    for point in forward:
        assert list(point) == list(SPACE)
        assert type(point["steps"]) is int
        assert type(point["rate"]) is float
        create_trial(state=TrialState.COMPLETE, value=0.0, params=point, distributions=SPACE)  # Optuna checks ranges
    if sampler != "grid":
        assert len({tuple(p.values()) for p in forward}) == 16
        assert forward != [sampled_point(sampler, SPACE, i, 16, "other") for i in range(16)]


def test_qmc_is_scipys_sobol_sequence() -> None:
    space = {
        "x": FloatDistribution(0.0, 1.0),
        "y": FloatDistribution(1e-2, 1e2, log=True),
        "z": FloatDistribution(2, 4),
    }
    expected = qmc.Sobol(3, scramble=True, rng=derive_seed("qmc", "s") % 2**32).random(16)
    found = np.array([list(sampled_point("qmc", space, i, 16, "s").values()) for i in range(16)])
    unit = np.stack([found[:, 0], (np.log10(found[:, 1]) + 2) / 4, (found[:, 2] - 2) / 2], axis=1)
    np.testing.assert_allclose(unit, expected, atol=1e-12)


def test_grid_covers_the_corners() -> None:
    space = {"x": FloatDistribution(-1.0, 3.0), "n": IntDistribution(2, 9), "y": FloatDistribution(1e-3, 1e1, log=True)}
    found = [tuple(sampled_point("grid", space, i, 8, 0).values()) for i in range(8)]
    assert found[0] == (-1.0, 2, 1e-3)
    corners = np.array(list(itertools.product((-1.0, 3.0), (2, 9), (1e-3, 1e1))))
    np.testing.assert_allclose(sorted(found), sorted(map(tuple, corners)), rtol=1e-12)
    inner = {sampled_point("grid", {"y": space["y"]}, i, 5, 0)["y"] for i in range(5)}
    np.testing.assert_allclose(sorted(inner), [1e-3, 1e-2, 1e-1, 1.0, 1e1], rtol=1e-12)


def test_grid_names_each_choice_and_each_step_once() -> None:
    found = [tuple(sampled_point("grid", {"m": MODE, "s": SPACE["even"]}, i, 12, 0).values()) for i in range(12)]
    assert sorted(found) == sorted(itertools.product("abc", (2, 4, 6, 8)))


def test_random_integers_are_uniform() -> None:
    """The ends as often as the middle: 5 values, 2000 draws, 400 each, six standard deviations are 107."""
    for space, count in (({"n": STEPS}, 5), ({"n": SPACE["even"]}, 4)):
        draws = Counter(sampled_point("random", space, i, 2000, 1)["n"] for i in range(2000))
        assert len(draws) == count
        assert all(abs(n - 2000 / count) < 120 for n in draws.values()), draws


def test_unknown_sampler() -> None:
    with pytest.raises(UserError, match="did you mean random"):
        sampled_point("randm", SPACE, 0, 1, 0)


@pytest.mark.parametrize(("field", "value"), [("lr", -0.1), ("epochs", -1), ("batch_size", 0), ("momentum", -1.0)])
def test_what_makes_no_sense_in_any_method_is_refused_with_the_spec(field: str, value: float) -> None:
    with pytest.raises(UserError, match=f"finetune: {field} must be at least .*, got {value}"):
        resolve(METHODS["finetune"].hparams, {field: value}, "finetune")
