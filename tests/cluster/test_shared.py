"""Reference models trained by several workers through Ray Train: the model of one process, also after a lost worker."""

from __future__ import annotations

import os

import pytest
import torch

from raybench.cluster.shared import SharedTrainings
from raybench.content_store import ContentStore
from raybench.distributed import KIND as CHECKPOINTS
from raybench.errors import UserError
from raybench.problem import load_data, make_problem
from raybench.reference_training import ORDERS, train_order
from raybench.references import KIND
from raybench.registry import load_plugins
from raybench.spec import Choice, ProblemSpec, TrialSpec
from raybench.workshop import Settings

DATA = os.environ.get("RAYBENCH_DATA")
ONE = {"cpu": 1.0, "gpu": 0.0}


@pytest.fixture
def shared(capped, tmp_path, ray_home):
    """Trainings on two slots, with a checkpoint every epoch, and their store."""
    load_plugins(("cluster_fakes",))
    settings = Settings(
        "tiny", str(tmp_path / "store"), (), data_root=DATA, plugins=("cluster_fakes",), checkpoint_s=0.0
    )
    return SharedTrainings(capped(2), settings, ONE, lambda: None), ContentStore(tmp_path / "store")


def orders(model, dataset, recipe, workers=2):
    """A retrained model's trial, its order for several workers, and the same model's for one process."""
    raw, checksum = load_data(dataset, DATA, False)

    def order(count):
        scenario = Choice("class", {"classes": [0]})
        spec = ProblemSpec(dataset, checksum, model, scenario, recipe, 0, train_workers=count)
        return ORDERS["retrained"](make_problem(spec, raw, torch.device("cpu")), 0, None)

    many = order(workers)
    return TrialSpec(many.problem.spec, "retrain", 1, {}, 0, "reference"), many, order(1)


def difference(found, expected):
    """The difference of all weights together, relative to their norm."""
    names = [name for name in expected if "running" not in name and "tracked" not in name]
    one, other = (torch.cat([tensors[name].double().flatten() for name in names]) for tensors in (found, expected))
    return float((one - other).norm() / other.norm())


def agree(many, alone, store, tolerance):
    """The stored model is that of one process within the tolerance; its record says who made it and what it took."""
    tensors, record = store.get(KIND, many.key)
    expected, cost = train_order(alone)
    assert tensors.keys() == expected.keys()
    assert difference(tensors, expected) < tolerance
    assert record["train_workers"] == many.workers
    for passes in ("forward", "backward"):
        assert record[passes] == pytest.approx(cost[passes])
    assert store.keys(CHECKPOINTS) == set()
    assert many.key != alone.key
    return tensors, expected


def test_a_killed_worker_costs_what_came_after_the_last_checkpoint(shared, tmp_path):
    trainings, store = shared
    model = Choice("mortal", {"base": "mlp", "folder": str(tmp_path), "after": 12})
    trial, many, alone = orders(model, Choice("digits", {"train_size": 300}), {"epochs": 4, "batch_size": 50})
    steps = -(-len(many.data) // 50)
    assert 2 * steps < 13 <= 3 * steps  # it dies in the third epoch
    assert trainings.run([trial]) == {}
    assert (tmp_path / "killed").exists()
    begun = sorted(len(file.read_bytes()) for file in tmp_path.glob("calls-*"))
    assert begun[:2] == [2 * steps] * 2  # the second start did the third and the fourth epoch only
    assert begun[-1] == 13
    agree(many, alone, store, 1e-4)
    assert trainings.run([trial]) == {}  # nothing to do


def test_too_few_slots_are_one_line(shared):
    trial, _, _ = orders(Choice("mlp"), Choice("digits", {"train_size": 300}), {"epochs": 1}, workers=3)
    with pytest.raises(
        UserError, match=r"train_workers must fit on the cluster at once, got 3 .* room for 2; lower it"
    ):
        shared[0].run([trial])


@pytest.mark.slow
def test_a_training_that_raises_is_a_reason(shared):
    model = Choice("mortal", {"base": "mlp", "folder": "/nowhere", "after": 0})
    trial, _, _ = orders(model, Choice("digits", {"train_size": 300}), {"epochs": 1})
    failed = shared[0].run([trial])
    assert "retrained model by 2 workers: " in failed[trial.trial_id]
    assert "No such file or directory" in failed[trial.trial_id]


@pytest.mark.slow
@pytest.mark.skipif(DATA is None, reason="needs CIFAR-10: set RAYBENCH_DATA")
@pytest.mark.parametrize("dies", [False, True])
def test_resnet8_on_cifar10(shared, tmp_path, dies):
    """Rounding grows from step to step, the faster the larger the learning rate. In double precision nothing else is
    left (``tests/test_distributed.py``)."""
    trainings, store = shared
    model = Choice("mortal", {"base": "resnet8", "folder": str(tmp_path), "after": 40 if dies else 10**6})
    options = {"path": "CIFAR10/cifar10_subset.npz", "augment": "crop_flip", "train_size": 2223, "test_size": 200}
    trial, many, alone = orders(model, Choice("npz", options), {"epochs": 2, "batch_size": 64, "lr": 0.01})
    assert trainings.run([trial]) == {}
    assert (tmp_path / "killed").exists() == dies
    accuracies = []
    for tensors in agree(many, alone, store, 5e-3):
        network = many.problem.build()
        network.load_state_dict({name.removeprefix("model."): tensor for name, tensor in tensors.items()})
        images, labels = many.data.tensors()
        with torch.no_grad():
            accuracies.append(float((network.eval()(images).argmax(1) == labels).float().mean()))
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.02)
    assert accuracies[0] > 0.2


@pytest.mark.slow
def test_a_run_has_its_references_trained_first(drive, on, capped, serial, spec, tmp_path):
    """Pool and search then find them in the store, and the rows are those of ``--serial`` with as many processes."""
    problems = [
        {"dataset": "digits", "models": ["mlp"], "scenarios": [{"class": {"classes": [0]}}], "train_workers": 2}
    ]
    raw = spec(problems=problems, search={"trials": 2, "round_size": 2})
    driven = drive(raw, on(capped(4)), results="many", store=tmp_path / "store")
    rows = driven.store.trials()
    assert set(rows["status"]) == {"ok"}, set(rows["reason"].dropna())
    assert {"reference", "search", "final"} <= set(rows["phase"])
    store = ContentStore(tmp_path / "store")
    assert [store.record(KIND, key)["train_workers"] for key in store.keys(KIND)] == [2, 2]
    again = drive(raw, serial, results="serial", store=tmp_path / "other")
    assert again.ids() == driven.ids()
    one, other = (found.table().set_index("trial_id")["retain_accuracy"] for found in (driven, again))
    assert one.to_dict() == pytest.approx(other.to_dict(), abs=0.02)
