"""Problems: every sample in one place, labels where they belong, digests that see what was trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from raybench.errors import UserError
from raybench.problem import (
    Problem,
    build_model,
    check_problem,
    draw_request,
    facts_of,
    load_data,
    make_problem,
    split_validation,
)
from raybench.registry import CLASS, SAMPLE
from raybench.spec import Choice, ProblemSpec

DIGITS = Choice("digits", {"train_size": 300, "test_size": 100})
RAW, CHECKSUM = load_data(DIGITS, None, False)
CPU = torch.device("cpu")


def spec_of(scenario: str = "class", options: dict[str, Any] | None = None, **changes: Any) -> ProblemSpec:
    chosen = Choice(scenario, options if options is not None else {"classes": [3, 5]})
    return ProblemSpec(
        **{
            "dataset": DIGITS,
            "checksum": CHECKSUM,
            "model": Choice("mlp", {"hidden": [8]}),
            "scenario": chosen,
            "recipe": {"epochs": 1},
            "train_seed": 0,
            **changes,
        }
    )


def problem_of(*args: Any, **changes: Any) -> Problem:
    return make_problem(spec_of(*args, **changes), RAW, CPU)


def rows(problem: Problem, name: str) -> set[int]:
    found: list[int] = problem.splits[name].index.tolist()
    assert len(set(found)) == len(found)
    return set(found)


SCENARIOS = [("class", {"classes": [3, 5]}), ("random", {"fraction": 0.2}), ("label_noise", {"fraction": 0.1})]


@pytest.mark.parametrize(("name", "options"), SCENARIOS)
def test_splits_are_disjoint_and_complete(name: str, options: dict[str, Any]) -> None:
    problem = problem_of(name, options)
    parts = ["retain", "forget", "validation"] + (["validation_forgotten"] if name == "class" else [])
    assert sum(len(rows(problem, part)) for part in parts) == 300
    assert set().union(*(rows(problem, part) for part in parts)) == set(range(300))
    assert rows(problem, "train") == rows(problem, "retain") | rows(problem, "forget")
    tests = ["test"] + (["test_forgotten"] if name == "class" else [])
    assert set().union(*(rows(problem, part) for part in tests)) == set(range(100))
    assert sum(len(rows(problem, part)) for part in tests) == 100
    assert set(problem.splits) == {"train", *parts, *tests}


@pytest.mark.parametrize(("name", "options"), SCENARIOS)
def test_images_are_those_of_the_dataset(name: str, options: dict[str, Any]) -> None:
    problem = problem_of(name, options)
    for part, split in problem.splits.items():
        source = (RAW.x_test, RAW.y_test) if part.startswith("test") else (RAW.x_train, RAW.y_train)
        index = split.index.numpy()
        np.testing.assert_array_equal(split.images[split.index].numpy(), source[0][index])
        if name != "label_noise" or part not in ("train", "forget"):
            np.testing.assert_array_equal(split.targets.numpy(), source[1][index])
    images, _ = problem.splits["retain"].tensors()
    pixels = RAW.x_train[problem.splits["retain"].index.numpy()] / 255.0
    np.testing.assert_allclose(images.numpy(), (pixels - RAW.mean[0]) / RAW.std[0], atol=1e-5)


def test_a_class_goes_from_training_and_from_what_is_held_out() -> None:
    problem = problem_of()
    gone = {3, 5}
    for name, split in problem.splits.items():
        classes = set(split.targets.tolist())
        if name == "forget" or name.endswith("_forgotten"):
            assert classes == gone, name
        elif name != "train":
            assert classes == set(range(10)) - gone, name
    assert problem.facts.forget_classes == (3, 5)
    assert problem.facts.scenario_kind == CLASS
    random = problem_of("random", {"count": 40})
    assert random.facts.forget_classes == ()
    assert random.facts.scenario_kind == SAMPLE
    assert len(random.splits["forget"]) == 40


def test_wrong_labels_are_in_training_only() -> None:
    problem = problem_of("label_noise", {"fraction": 0.1})
    for name, split in problem.splits.items():
        source = RAW.y_test if name == "test" else RAW.y_train
        wrong = (split.targets.numpy() != source[split.index.numpy()]).sum()
        assert wrong == {"train": len(problem.splits["forget"]), "forget": len(split)}.get(name, 0), name
    assert int(problem.splits["forget"].labels.max()) < 10
    again = load_data(DIGITS, None, False)[0]
    assert again.checksum() == CHECKSUM  # the dataset itself was not written to


def test_validation_is_stratified_and_a_function_of_its_seed() -> None:
    labels = np.repeat([0, 1, 2, 7], [100, 50, 4, 30])
    train, held_out = split_validation(labels, 0.2, seed=0)
    assert np.bincount(labels[held_out], minlength=8).tolist() == [20, 10, 1, 0, 0, 0, 0, 6]
    assert sorted([*train, *held_out]) == list(range(len(labels)))
    assert (np.diff(train) > 0).all()
    np.testing.assert_array_equal(split_validation(labels, 0.2, 0)[1], held_out)
    assert set(split_validation(labels, 0.2, 1)[1]) != set(held_out)


def test_each_seed_moves_its_own_part() -> None:
    base = problem_of("random", {"fraction": 0.2})

    def moved(**changes: Any) -> tuple[bool, bool]:
        other = problem_of("random", {"fraction": 0.2}, **changes)
        return rows(other, "validation") != rows(base, "validation"), rows(other, "forget") != rows(base, "forget")

    assert moved(train_seed=1) == (False, False)
    assert moved(draw_seed=1) == (False, True)
    assert moved(split_seed=1) == (True, True)
    assert moved(threads=2) == (False, False)


def test_digests_tell_what_was_trained_on() -> None:
    by_class, by_sample = problem_of(), problem_of("random", {"fraction": 0.2})
    noisy = problem_of("label_noise", {"fraction": 0.2})
    assert by_class.train_digest == by_sample.train_digest  # one original model serves both
    assert noisy.train_digest != by_class.train_digest  # the same images under other labels
    assert len({p.retain_digest for p in (by_class, by_sample, noisy)}) == 3
    assert problem_of(train_seed=1).train_digest == by_class.train_digest  # the seed is another part of the key
    assert problem_of("random", {"fraction": 0.2}, draw_seed=1).retain_digest != by_sample.retain_digest
    assert problem_of(split_seed=1).train_digest != by_class.train_digest
    assert problem_of(checksum="other pixels").train_digest != by_class.train_digest
    assert by_class.train_digest != by_class.retain_digest


def test_images_are_on_the_device_once_for_all_problems_of_a_dataset() -> None:
    problem, other = problem_of(), problem_of("random", {"fraction": 0.2})
    splits = [s for p in (problem, other) for n, s in p.splits.items() if not n.startswith("test")]
    assert len({s.images.data_ptr() for s in splits}) == 1
    before = problem.splits["retain"].images.clone()
    mine = problem.splits["retain"].private(torch.Generator())
    mine.images.zero_()
    mine.labels.zero_()
    assert torch.equal(problem.splits["retain"].images, before)
    assert problem.splits["retain"].targets.any()


@pytest.mark.parametrize(
    ("scenario", "options", "message"),
    [
        ("klass", {}, "scenario must be a registered name, got 'klass'; did you mean class"),
        ("class", {"classes": [11]}, "classes of the dataset, got 11"),
        ("class", {"clases": [1]}, "did you mean classes"),
        ("class", {"classes": list(range(10))}, "leave at least one class"),
        ("random", {}, "exactly one of fraction and count"),
        ("random", {"count": 10_000}, "must forget 1 to"),
        ("random", {"fraction": 1e-9}, "must forget 1 to"),
        ("label_noise", {"fraction": 2}, "fraction must be above 0 and below 1"),
    ],
)
def test_impossible_requests_are_one_line(scenario: str, options: dict[str, Any], message: str) -> None:
    for make in (check_problem, lambda spec, raw: make_problem(spec, raw, CPU)):
        with pytest.raises(UserError, match=message) as caught:
            make(spec_of(scenario, options), RAW)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Choice("mpl"), "did you mean mlp"),
        (Choice("mlp", {"hiden": [3]}), "hiden"),
        (Choice("mlp", {"hidden": [0]}), "at least 1"),
        (Choice("mlp:x"), "mlp:x"),
    ],
)
def test_impossible_models_are_one_line(model: Choice, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_problem(spec_of(model=model), RAW)


def test_a_loader_must_keep_some_and_forget_some(monkeypatch: pytest.MonkeyPatch) -> None:
    from raybench.data import Request
    from raybench.registry import SCENARIOS, ScenarioEntry

    SCENARIOS.names()
    monkeypatch.setitem(
        SCENARIOS._entries,
        "nothing",
        ScenarioEntry("nothing", lambda images, labels, k, params, rng: Request(np.zeros(len(labels), dtype=bool))),
    )
    with pytest.raises(UserError, match=r"must forget some and keep some of .*, got 0 to forget"):
        draw_request(spec_of("nothing", {}), RAW, np.arange(300))


def test_a_scenario_may_change_training_images(monkeypatch: pytest.MonkeyPatch) -> None:
    from raybench.data import Request
    from raybench.registry import SCENARIOS, ScenarioEntry

    def stamp(images: np.ndarray, labels: np.ndarray, k: int, params: Any, rng: np.random.Generator) -> Request:
        forget = np.arange(len(labels)) < 20
        changed = images.copy()
        changed[forget] = 255 - changed[forget]
        return Request(forget, images=changed)

    SCENARIOS.names()
    monkeypatch.setitem(SCENARIOS._entries, "stamp", ScenarioEntry("stamp", stamp))
    problem, plain = problem_of("stamp", {}), problem_of("random", {"count": 20})
    for name, split in problem.splits.items():
        source = RAW.x_test if name == "test" else RAW.x_train
        expected = source[split.index.numpy()]
        if name in ("forget", "train"):
            changed = np.isin(split.index.numpy(), problem.splits["forget"].index.numpy())
            expected = np.where(changed[:, None, None, None], 255 - expected, expected)
        np.testing.assert_array_equal(split.images[split.index].numpy(), expected)
    assert problem.train_digest != plain.train_digest


def test_facts_and_building() -> None:
    spec = spec_of()
    problem = problem_of()
    assert facts_of(spec, RAW, (3, 5)) == problem.facts
    assert problem.facts.input_shape == (1, 28, 28)
    assert problem.facts.num_classes == 10
    model = problem.build()
    assert model(problem.splits["retain"].tensors()[0][:2]).shape == (2, 10)
    assert build_model(Choice("mlp", {"hidden": [4]}), 3, (1, 5, 5)).head.in_features == 4  # type: ignore[union-attr]


def test_data_is_loaded_once_per_process() -> None:
    assert load_data(DIGITS, None, False)[0] is load_data(DIGITS, None, False)[0]
    assert RAW.checksum() == CHECKSUM
    other, checksum = load_data(Choice("digits", {"train_size": 200}), None, False)
    assert (len(other.y_train), checksum != CHECKSUM) == (200, True)


def test_a_rare_class_keeps_a_validation_sample() -> None:
    _, held_out = split_validation(RAW.y_train, 0.001, 0)
    assert set(RAW.y_train[held_out].tolist()) == set(range(10))
    assert len(held_out) == 10
