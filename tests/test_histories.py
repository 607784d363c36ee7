"""Training histories: plans, what is recorded, windows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from raybench.content_store import ContentStore
from raybench.errors import UserError
from raybench.histories import KIND, HistoryRun, Sampler, collect, plan_histories, train_history
from raybench.mechanisms.rewinding import BACK, HISTORY
from raybench.problem import build_model, load_data
from raybench.seeding import canonical, seeded_globals
from raybench.spec import Choice
from raybench.spec_file import read_spec

DIGITS = {"name": "digits", "train_size": 100}
FAMILY = {"dataset": DIGITS, "model": {"name": "mlp", "hidden": [8]}, "runs": 3, "epochs": 20}
RUN = HistoryRun(Choice("digits", {"train_size": 100}), Choice("mlp", {"hidden": [8]}), 1e-3, 32, 2, 7)


def test_plan_is_a_function_of_the_spec():
    spec = {"name": "x", "seed": 3, "families": [FAMILY, {**FAMILY, "runs": 1, "held_out": True}]}
    plan = plan_histories(spec)
    assert plan == plan_histories(spec)
    assert (len(plan.runs), len(plan.held_out), len(plan.all)) == (3, 1, 4)
    assert len({run.key("c") for run in plan.all}) == 4
    assert plan.runs[0].lr != plan_histories({**spec, "seed": 4}).runs[0].lr
    longer = plan_histories({**spec, "families": [{**FAMILY, "runs": 9}]})
    assert longer.runs[:3] == plan.runs  # more runs leave the first ones as they are


def test_learning_rates_are_log_uniform_and_batch_sizes_come_from_the_list():
    plan = plan_histories({"families": [{**FAMILY, "runs": 400, "lr": [1e-5, 1e-3], "batch_sizes": [32, 64]}]})
    rates = np.log10([run.lr for run in plan.runs])
    assert rates.min() > -5.001
    assert rates.max() < -2.999
    assert np.quantile(rates, [0.25, 0.5, 0.75]) == pytest.approx([-4.5, -4, -3.5], abs=0.15)
    assert {run.batch_size for run in plan.runs} == {32, 64}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"epochs": 16}, "epochs must be at least 17"),
        ({"lr": [1e-3, 1e-5]}, "lr must be two positive ends, low first"),
        ({"lr": [1e-3]}, "lr must be two positive ends, low first"),
        ({"model": {"width": 3}}, "model must be a name, or a mapping"),
        ({"rounds": 3}, "rounds"),
        ({"optimiser": "newton"}, "optimiser must be one of"),
    ],
)
def test_bad_families_are_one_line(change, says):
    with pytest.raises(UserError, match=says):
        plan_histories({"families": [{**FAMILY, **change}]})


def test_bad_specs_are_one_line():
    for spec in ({"name": "x"}, {"families": []}, {"families": [FAMILY], "epochs": 3}):
        with pytest.raises(UserError, match="a spec of histories must have"):
            plan_histories(spec)


def test_key_depends_on_everything_but_the_way_to_the_data():
    keys = {RUN.key("c"), RUN.key("d")}
    for name, value in (("lr", 2e-3), ("batch_size", 33), ("epochs", 3), ("seed", 8), ("optimiser", "sgd")):
        keys.add(dataclasses.replace(RUN, **{name: value}).key("c"))
    keys.add(dataclasses.replace(RUN, model=Choice("mlp", {"hidden": [9]})).key("c"))
    assert len(keys) == 8
    assert dataclasses.replace(RUN, dataset=Choice("npz", {"path": "x"})).key("c") == RUN.key("c")
    assert HistoryRun.from_dict(canonical(RUN)).key("c") == RUN.key("c")


def test_history_is_the_training_of_that_network():
    raw, _ = load_data(RUN.dataset, None, False)
    before = torch.get_rng_state()
    weights, accuracy = train_history(RUN, raw)
    assert torch.equal(before, torch.get_rng_state())
    with seeded_globals(RUN.seed):
        start = dict(build_model(RUN.model, raw.num_classes, raw.input_shape).named_parameters())
    assert {name: t.shape for name, t in weights.items()} == {name: (3, *p.shape) for name, p in start.items()}
    assert all(torch.equal(weights[name][0], p) for name, p in start.items())
    steps = -(-100 // 32)
    for name in weights:  # Adam's steps are at most about lr each
        moved = (weights[name][1] - weights[name][0]).abs().max()
        assert 0 < float(moved) <= 1.5 * steps * RUN.lr
    longer, better = train_history(dataclasses.replace(RUN, epochs=100), raw)
    assert all(torch.equal(longer[name][:3], weights[name]) for name in weights)
    assert better > max(accuracy, 0.7)


def test_collecting_twice_trains_once(tmp_path):
    store = ContentStore(tmp_path)
    key = collect(RUN, store, None)
    stamp = (tmp_path / KIND / key[:2] / key / "record.json").stat().st_mtime_ns
    assert collect(RUN, store, None) == key
    assert (tmp_path / KIND / key[:2] / key / "record.json").stat().st_mtime_ns == stamp
    weights, record = store.get(KIND, key)
    assert record["run"]["lr"] == RUN.lr
    assert record["train_s"] > 0
    raw, _ = load_data(RUN.dataset, None, False)
    assert all(torch.equal(weights[name], t) for name, t in train_history(RUN, raw)[0].items())


def paths(steps, kinds=("conv", "fc", "bias")):
    """A history whose coordinate i walks by steps[i] every epoch: theta = 100 i + steps[i] k."""
    count = len(steps)
    path = 100 * torch.arange(count) + torch.arange(31.0)[:, None] * torch.tensor(steps)
    shapes = {"conv": (count, 1, 1, 1), "fc": (count, 1), "bias": (count,)}
    return {kind: path.reshape(31, *shapes[kind]) for kind in kinds}


def test_windows_are_pieces_of_paths():
    sampler = Sampler(torch.Generator().manual_seed(0), per_kind=40)
    sampler.add(paths([0.5, 0.25, -2.0]))
    found = sampler.windows()
    assert set(found) == {"conv", "fc", "bias"}
    for windows in found.values():
        assert windows.history.shape == (HISTORY, 40)
        step = windows.history[1] - windows.history[0]
        assert torch.equal(windows.residual, -BACK * step)
        column = (windows.history[0] / 100).round()
        epoch = (windows.history[0] - 100 * column) / step
        assert set(epoch.int().tolist()) <= set(range(BACK, 31 - HISTORY + 1))
        assert len(windows) == 40
    both = found["fc"].history
    assert len({tuple(column) for column in both.T.tolist()}) == 40  # none twice


def test_every_decade_of_movement_is_seen_alike():
    """1,000 coordinates that hardly move beside 20 that do: plain sampling would show 2 % of those."""
    sampler = Sampler(torch.Generator().manual_seed(0), per_kind=100, candidates=100)
    steps = torch.tensor([3e-6] * 980 + [0.02] * 20 + [0.5] * 20)
    sampler.add({"fc": (torch.arange(31.0)[:, None] * steps)[:, :, None]})
    windows = sampler.windows()
    assert set(windows) == {"fc"}
    step = (windows["fc"].history[1] - windows["fc"].history[0]).abs()
    counts = [int(((step > low) & (step < high)).sum()) for low, high in ((0, 1e-4), (1e-4, 0.1), (0.1, 1))]
    assert counts == pytest.approx([33, 33, 33], abs=1)


def test_short_strata_give_what_they_have_and_others_fill_up():
    sampler = Sampler(torch.Generator().manual_seed(0), per_kind=100, candidates=1000)
    sampler.add({"fc": torch.cat([paths([1e-3] * 50, ("fc",))["fc"], paths([5.0], ("fc",))["fc"]], dim=1)})
    windows = sampler.windows()["fc"]
    fast = int(((windows.history[1] - windows.history[0]).abs() > 1).sum())
    assert fast == 31 - HISTORY - BACK + 1  # all starts of the one fast coordinate
    assert len(windows) == 100


def test_shipped_spec_keeps_clear_of_what_rewind_is_evaluated_on():
    plan = plan_histories(read_spec(str(Path(__file__).parents[1] / "jobs" / "histories.yaml")))
    assert {run.dataset.name for run in plan.all} == {"mnist"}
    assert {run.model.name for run in plan.all} == {"lenet5", "vgg8"}
    assert not {(run.model.label, run.seed) for run in plan.runs} & {
        (run.model.label, run.seed) for run in plan.held_out
    }
    assert {run.model.label for run in plan.held_out} - {run.model.label for run in plan.runs}  # a new architecture
