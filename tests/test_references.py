"""Reference models: trained once per content, on the samples they may see, and paid for as measured."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from raybench import references as module
from raybench.content_store import ContentStore
from raybench.data import RawData
from raybench.evaluation import FINAL_SPLITS, outputs_of
from raybench.problem import Problem, load_data, make_problem
from raybench.references import KIND, Reference, References, no_lease
from raybench.registry import TRAININGS, TrainingEntry
from raybench.seeding import derive_seed, torch_generator
from raybench.spec import Choice, ProblemSpec, Training
from raybench.training import Trained, TrainingJob, make_recipe, train_standard

DIGITS = Choice("digits", {"train_size": 200, "test_size": 60})
RAW, CHECKSUM = load_data(DIGITS, None, False)
RECIPE = {"epochs": 2, "batch_size": 32}
STANDARD = Training()


def problem_of(scenario: str = "class", raw: RawData = RAW, **changes: Any) -> Problem:
    options = {"class": {"classes": [0]}, "random": {"fraction": 0.2}, "label_noise": {"fraction": 0.2}}[scenario]
    spec = ProblemSpec(
        **{
            "dataset": DIGITS,
            "checksum": CHECKSUM,
            "model": Choice("mlp", {"hidden": [16]}),
            "scenario": Choice(scenario, options),
            "recipe": RECIPE,
            "train_seed": 0,
            **changes,
        }
    )
    return make_problem(spec, raw, torch.device("cpu"))


@dataclasses.dataclass
class Watched:
    """The jobs that were really run."""

    jobs: list[TrainingJob]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    found = Watched([])

    def train(job: TrainingJob) -> Trained:
        found.jobs.append(job)
        return train_standard(job)

    monkeypatch.setattr("raybench.reference_training.train_standard", train)
    return found


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    return ContentStore(tmp_path)


def fresh(store: ContentStore) -> References:
    """As a new process finds it."""
    return References(store, no_lease)


def same(one: Reference, other: Reference) -> bool:
    a, b = one.model.state_dict(), other.model.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_a_second_run_trains_nothing(store: ContentStore, watched: Watched) -> None:
    first = fresh(store)
    problem = problem_of()
    made = [first.original(problem, STANDARD), *(first.retrained(problem, i) for i in range(2))]
    assert len(watched.jobs) == 3
    assert [r.cached for r in made] == [False] * 3
    assert first.original(problem_of(), STANDARD) is made[0]
    second = fresh(store)
    again = [second.original(problem_of(), STANDARD), *(second.retrained(problem_of(), i) for i in range(2))]
    assert len(watched.jobs) == 3
    assert [r.cached for r in again] == [True] * 3
    assert all(same(a, b) for a, b in zip(made, again, strict=True))
    assert [r.record for r in again] == [r.record for r in made]


def test_a_model_is_the_plain_training_of_its_seed(store: ContentStore) -> None:
    """Against the job put together by hand."""
    problem = problem_of()
    for found, split, seed in (
        (fresh(store).original(problem, STANDARD), "train", derive_seed("original", 0)),
        (fresh(store).retrained(problem, 1), "retain", derive_seed("retrained", 0, 1)),
    ):
        job = TrainingJob(
            train=problem.splits[split].bound(torch_generator("order", seed)),
            recipe=make_recipe(RECIPE),
            hparams=None,
            seed=seed,
            build=problem.build,
            num_classes=10,
            input_shape=(1, 28, 28),
            generator=torch_generator("other"),
            device=torch.device("cpu"),
        )
        expected = train_standard(job).model.state_dict()
        assert all(torch.equal(t, expected[n]) for n, t in found.model.state_dict().items())


def test_passes_seconds_and_provenance_are_recorded(store: ContentStore) -> None:
    problem = problem_of()
    refs = fresh(store)
    original, gold = refs.original(problem, STANDARD), refs.retrained(problem, 0)
    for reference, split in ((original, "train"), (gold, "retain")):
        samples = len(problem.splits[split]) * RECIPE["epochs"]
        assert reference.record["forward"] == pytest.approx(samples)
        assert reference.record["backward"] == pytest.approx(samples)
        assert 0 < reference.record["train_s"] < 30
        assert reference.record["artefact_bytes"] == 0
        assert reference.record["peak_memory"] is None
        assert {"cpu_s", "device_name", "made_on", "started_at"} <= reference.record.keys()


def test_models_are_clean_and_still(store: ContentStore) -> None:
    original = fresh(store).original(problem_of(), STANDARD)
    assert not original.model.training
    assert not any(p.requires_grad for p in original.model.parameters())
    assert not any(layer._forward_hooks for layer in original.model.modules())
    assert not any("_raybench_passes" in layer.__dict__ for layer in original.model.modules())


def test_scenarios_of_one_seed_and_recipe_share_their_original(store: ContentStore, watched: Watched) -> None:
    refs = fresh(store)
    one = refs.original(problem_of("class"), STANDARD)
    assert refs.original(problem_of("random"), STANDARD).key == one.key
    assert fresh(store).original(problem_of("random"), STANDARD).cached
    assert len(watched.jobs) == 1
    different = [
        problem_of("label_noise"),
        problem_of(train_seed=1),
        problem_of(recipe={**RECIPE, "lr": 0.01}),
        problem_of(model=Choice("mlp", {"hidden": [8]})),
        problem_of(split_seed=1),
        problem_of(threads=2),
        problem_of(checksum="other"),
        problem_of(validation=0.2),
    ]
    assert len({one.key, *(refs.original(p, STANDARD).key for p in different)}) == len(different) + 1
    assert len(watched.jobs) == len(different) + 1


def test_retrained_models_differ_by_index_seed_and_request(store: ContentStore) -> None:
    refs = fresh(store)
    found = [
        refs.retrained(problem_of(), 0),
        refs.retrained(problem_of(), 1),
        refs.retrained(problem_of(train_seed=1), 0),
        refs.retrained(problem_of("random"), 0),
        refs.original(problem_of(), STANDARD),
    ]
    assert len({r.key for r in found}) == 5
    assert not any(same(a, b) for i, a in enumerate(found) for b in found[:i])


@pytest.mark.parametrize("scenario", ["class", "random", "label_noise"])
def test_retrained_models_never_see_the_forget_set(store: ContentStore, watched: Watched, scenario: str) -> None:
    problem = problem_of(scenario)
    fresh(store).retrained(problem, 0)
    seen, retain = watched.jobs[0].train, problem.splits["retain"]
    assert torch.equal(seen.images, retain.images[retain.index])  # and no image beside them
    assert torch.equal(seen.targets, retain.targets)
    assert len(seen.images) == len(retain)


def test_other_forget_images_leave_the_retrained_model_as_it_is(tmp_path: Path) -> None:
    """The oracle that needs no bookkeeping: garble what is to be forgotten (and the test set), train again."""
    plain = problem_of("random")
    gone = plain.splits["forget"].index.numpy()
    x, y = RAW.x_train.copy(), RAW.y_train.copy()
    x[gone] = np.random.default_rng(0).integers(0, 256, x[gone].shape, dtype=np.uint8)
    raw = dataclasses.replace(RAW, x_train=x, y_train=y, x_test=255 - RAW.x_test)
    garbled = problem_of("random", raw, checksum="garbled")
    refs = [fresh(ContentStore(tmp_path / name)) for name in "ab"]
    assert same(refs[0].retrained(plain, 0), refs[1].retrained(garbled, 0))
    assert not same(refs[0].original(plain, STANDARD), refs[1].original(garbled, STANDARD))


# --- own trainings --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Coded:
    size: int = 3


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    runs: list[int] = []

    def train(job: TrainingJob) -> Trained:
        runs.append(job.hparams.size)
        model = job.new_model()
        job.fit(model)
        codes = torch.rand(job.num_classes, job.hparams.size, generator=job.generator)
        return Trained(model, {"codes": codes, "order": torch.arange(5)})

    TRAININGS.names()
    monkeypatch.setitem(TRAININGS._entries, "coded", TrainingEntry("coded", train, hparams=Coded))
    return runs


def test_own_trainings_keep_their_artefacts(store: ContentStore, own: list[int]) -> None:
    problem = problem_of()
    made = fresh(store).original(problem, Training("coded", 1, {"size": 4}))
    again = fresh(store).original(problem, Training("coded", 1, {"size": 4}))
    assert own == [4]
    assert same(made, again)
    assert made.artefacts.keys() == again.artefacts.keys() == {"codes", "order"}
    assert all(torch.equal(made.artefacts[n], again.artefacts[n]) for n in made.artefacts)
    assert made.artefacts["codes"].shape == (10, 4)
    assert again.record["artefact_bytes"] == 10 * 4 * 4 + 5 * 8
    assert set(made.model.state_dict()) == set(problem.build().state_dict())


def test_own_trainings_are_apart_from_each_other_and_the_standard(store: ContentStore, own: list[int]) -> None:
    refs = fresh(store)
    problem = problem_of()
    keys = {
        refs.original(problem, t).key
        for t in (STANDARD, Training("coded"), Training("coded", 2), Training("coded", 1, {"size": 4}))
    }
    assert len(keys) == 4
    assert own == [3, 3, 4]
    before = len(own)
    refs.retrained(problem, 0)  # always the standard recipe
    assert len(own) == before


# --- damage, leases, outputs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["*.safetensors", "record.json"])
def test_a_damaged_model_is_trained_again_to_the_same_bytes(store: ContentStore, watched: Watched, name: str) -> None:
    made = fresh(store).original(problem_of(), STANDARD)
    (folder,) = (Path(str(store.folder)) / KIND).glob("*/*")
    (tensors,) = folder.glob("*.safetensors")
    (damaged,) = folder.glob(name)
    before = tensors.read_bytes()
    data = bytearray(damaged.read_bytes())
    place = data.find(b'"identity": "') + 14 if name == "record.json" else -3  # a float's last digit may mean nothing
    data[place] ^= 4
    damaged.write_bytes(bytes(data))
    torch.rand(3)
    again = fresh(store).original(problem_of(), STANDARD)
    assert len(watched.jobs) == 2
    assert not again.cached
    assert same(made, again)
    assert tensors.read_bytes() == before


def test_the_lease_is_held_while_training_and_looks_again(store: ContentStore, watched: Watched) -> None:
    held: list[str] = []

    @contextlib.contextmanager
    def lease(key: str) -> Iterator[None]:
        held.append(key)
        fresh(store).original(problem_of(), STANDARD)  # the holder before us made it
        yield

    found = References(store, lease).original(problem_of(), STANDARD)
    assert held == [found.key]
    assert found.cached
    assert len(watched.jobs) == 1
    References(store, lease).original(problem_of(), STANDARD)
    assert len(held) == 1


def test_training_leaves_the_global_state_and_the_data_alone(store: ContentStore) -> None:
    before = torch.get_rng_state()
    problem = problem_of()
    images, labels = (t.clone() for t in (problem.splits["train"].images, problem.splits["train"].labels))
    refs = fresh(store)
    refs.outputs(problem, refs.retrained(problem, 0))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(problem.splits["train"].images, images)
    assert torch.equal(problem.splits["train"].labels, labels)


def test_outputs_are_those_of_the_model_and_are_kept(store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of()
    refs = fresh(store)
    gold = refs.retrained(problem, 0)
    found = refs.outputs(problem, gold)
    expected = outputs_of(gold.model, problem.splits, FINAL_SPLITS)
    assert set(found) == set(expected) == set(FINAL_SPLITS) - {"test_triggered"}
    for name in found:
        assert torch.equal(found[name].logits, expected[name].logits)
        assert torch.equal(found[name].labels, expected[name].labels)
    assert refs.outputs(problem, gold) is found

    def nobody(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(module, "outputs_of", nobody)
    again = fresh(store)
    stored = again.outputs(problem_of(), again.retrained(problem_of(), 0))
    assert all(torch.equal(stored[n].logits, found[n].logits) for n in found)
    other = problem_of("random")  # splits otherwise
    with pytest.raises(AssertionError, match="computed again"):
        again.outputs(other, again.original(other, STANDARD))


def test_an_empty_split_reads_the_same_fresh_and_stored(store: ContentStore) -> None:
    """A row must not depend on whether its outputs were computed or found."""
    keep = RAW.y_test != 0
    raw = dataclasses.replace(RAW, x_test=RAW.x_test[keep], y_test=RAW.y_test[keep])
    reasons = []
    for _ in range(2):
        problem = problem_of("class", raw, checksum="no zeros in the test set")
        refs = fresh(store)
        outputs = refs.outputs(problem, refs.original(problem, STANDARD))
        with pytest.raises(Exception, match="test_forgotten") as caught:
            outputs["test_forgotten"]
        reasons.append((str(caught.value), set(outputs)))
    assert reasons[0] == reasons[1]


def test_memory_is_bounded_and_the_store_is_not(store: ContentStore, watched: Watched) -> None:
    refs = fresh(store)
    problem = problem_of(recipe={"epochs": 0})
    for index in range(module.MEMORY_MODELS + 2):
        refs.retrained(problem, index)
    assert len(refs._models) == module.MEMORY_MODELS
    count = len(watched.jobs)
    assert refs.retrained(problem, 0).cached  # from the store: it was dropped from memory
    assert len(watched.jobs) == count
    assert isinstance(refs.retrained(problem, 0).model, nn.Module)
