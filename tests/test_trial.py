"""``run_trial``: one row for every end, comparable columns equal to the bit, and one golden run.

The golden run compares with ``tests/data/golden.json``. Where its numbers move, results that people have are no
longer comparable with new ones. So first raise the version of what moved them: of the method or of the metric where
it registers, else ``PROTOCOL`` in ``raybench/spec.py``. Then write the file again by

    python tests/test_trial.py
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import raybench
from raybench.data import RawData
from raybench.errors import StorageError, UserError
from raybench.evaluation import FINAL_SPLITS, unpack
from raybench.leaderboard.schema import MetricInfo, check_row, comparable, trial_schema
from raybench.metrics import DEFAULT_METRICS
from raybench.problem import load_data
from raybench.registry import (
    DATASETS,
    FORGET,
    METHODS,
    METRICS,
    RETAIN,
    TRAININGS,
    DatasetEntry,
    MethodEntry,
    TrainingEntry,
)
from raybench.spec import FINAL, PROTOCOL, REFERENCE, SEARCH, Choice, ProblemSpec, Training, TrialSpec, with_seed
from raybench.task import UnlearningTask
from raybench.training import Trained, TrainingJob
from raybench.trial import run_trial
from raybench.workshop import Placement, Settings, Workshop, WrongDevice

GOLDEN = Path(__file__).parent / "data" / "golden.json"
DIGITS = Choice("digits", {"train_size": 200, "test_size": 60})
RECIPE = {"epochs": 3, "batch_size": 32, "augment": False}
INFOS = [MetricInfo(m.name, m.version, m.unit, m.direction) for m in (METRICS[n] for n in DEFAULT_METRICS)]
SCHEMA = trial_schema(INFOS, PROTOCOL)
COLUMNS = comparable(SCHEMA)


def problem_of(scenario: str = "class", **changes: Any) -> ProblemSpec:
    options = {"class": {"classes": [0]}, "random": {"fraction": 0.2}}[scenario]
    dataset = changes.get("dataset", DIGITS)
    values: dict[str, Any] = {
        "dataset": dataset,
        "checksum": load_data(dataset, None, False)[1],
        "model": Choice("mlp", {"hidden": [16]}),
        "scenario": Choice(scenario, options),
        "recipe": RECIPE,
        "train_seed": 0,
    }
    return ProblemSpec(**{**values, **changes})


def trial_of(method: str, phase: str = FINAL, problem: ProblemSpec | None = None, **changes: Any) -> TrialSpec:
    values: dict[str, Any] = {"hparams": {}, "unlearn_seed": 0, "method_version": METHODS[method].version}
    return TrialSpec(problem or problem_of(), method, phase=phase, **{**values, **changes})


def shop_at(folder: Path, **changes: Any) -> Workshop:
    values: dict[str, Any] = {
        "experiment": "test",
        "store": str(folder / "store"),
        "metrics": DEFAULT_METRICS,
        "artifacts": str(folder / "artifacts"),
    }
    return Workshop(Settings(**{**values, **changes}))


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose store holds the references of the usual problem."""
    folder = tmp_path_factory.mktemp("warm")
    shop = shop_at(folder)
    run_trial(trial_of("original", REFERENCE), {}, shop)
    return folder


@pytest.fixture
def shop(warm: Path) -> Workshop:
    return shop_at(warm)


Method = Callable[[UnlearningTask, Any], Any]
Register = Callable[..., str]


@dataclasses.dataclass(frozen=True)
class Amount:
    amount: float = 1.0


@pytest.fixture
def method(monkeypatch: pytest.MonkeyPatch) -> Register:
    """Registers a function as method ``toy``, for this test only."""
    METHODS.names()

    def register(fn: Method, name: str = "toy", **metadata: Any) -> str:
        options = {"needs": frozenset({FORGET, RETAIN}), "hparams": Amount, **metadata}
        monkeypatch.setitem(METHODS._entries, name, MethodEntry(name, fn, name, **options))
        return name

    return register


def checked(row: dict[str, Any]) -> dict[str, Any]:
    """The row as it would be written: the schema accepts it."""
    return check_row({key: value for key, value in row.items() if key != "series"}, SCHEMA)


def gates_of(row: dict[str, Any]) -> dict[str, bool | None]:
    gates: dict[str, bool | None] = json.loads(row["gates"])
    return gates


# --- rows of every phase --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["class", "random"])
@pytest.mark.parametrize(
    ("name", "phase"),
    [("original", REFERENCE), ("retrain", REFERENCE), ("finetune", FINAL), ("finetune", SEARCH)],
)
def test_rows_fit_the_schema(shop: Workshop, name: str, phase: str, scenario: str) -> None:
    hparams = {"epochs": 1} if name == "finetune" else {}
    spec = trial_of(name, phase, problem_of(scenario), hparams=hparams)
    row = checked(run_trial(spec, {"selected_on": "retrained", "tuned_here": False}, shop))
    assert (row["status"], row["reason"]) == ("ok", None)
    assert row["trial_id"] == spec.trial_id
    assert TrialSpec.from_dict(json.loads(row["spec"])) == spec
    assert row["forget_size"] == len(shop.problem(spec.problem).splits["forget"])
    assert (row["method"], row["phase"], row["threads"], row["device_type"]) == (name, phase, 1, "cpu")
    assert (row["raybench_version"], row["torch_version"]) == (raybench.__version__, torch.__version__)
    assert (row["peak_memory"], row["cuda_version"]) == (None, None)
    assert row["retrain_s"] > 0
    assert (row["selected_on"], row["tuned_here"], row["experiment"]) == ("retrained", False, "test")
    assert row["retain_accuracy"] > 0.15
    assert row["retain_accuracy_gap"] == row["retain_accuracy"] - row["retain_accuracy_retrained"]


def test_costs_of_doing_nothing_and_of_retraining(shop: Workshop) -> None:
    row = checked(run_trial(trial_of("original", REFERENCE), {}, shop))
    assert (row["unlearn_s"], row["forward_passes"], row["retrain_share"], row["speedup"]) == (0.0, 0.0, 0.0, None)
    assert row["cached"]
    gold = checked(run_trial(trial_of("retrain", REFERENCE), {}, shop))
    assert gold["unlearn_s"] == gold["retrain_s"]
    assert (gold["speedup"], gold["retrain_share"]) == (1.0, 1.0)
    assert gold["distance"] == 0.0
    samples = len(shop.problem(problem_of()).splits["retain"]) * RECIPE["epochs"]
    assert gold["forward_passes"] == pytest.approx(samples)
    second = checked(run_trial(trial_of("retrain", REFERENCE, unlearn_seed=1), {}, shop))
    assert second["retrain_s"] == gold["retrain_s"]  # ratios are to the reference
    assert second["unlearn_s"] != gold["unlearn_s"]
    assert second["distance"] > 0.0


def test_a_model_that_this_process_trained_is_not_cached_whoever_needed_it_first(tmp_path: Path) -> None:
    shop = shop_at(tmp_path)
    rows = [run_trial(trial_of(name, REFERENCE), {}, shop) for name in ("original", "retrain")]
    assert [row["cached"] for row in rows] == [False, False]
    again = shop_at(tmp_path)
    assert [run_trial(trial_of(name, REFERENCE), {}, again)["cached"] for name in ("original", "retrain")] == [True] * 2


def test_costs_of_a_method(shop: Workshop) -> None:
    row = checked(run_trial(trial_of("finetune", hparams={"epochs": 2}), {}, shop))
    samples = 2 * len(shop.problem(problem_of()).splits["retain"])
    assert row["forward_passes"] == pytest.approx(samples)
    assert row["backward_passes"] == pytest.approx(samples)
    assert row["retrain_share"] == pytest.approx(2 / RECIPE["epochs"])
    assert row["speedup"] == pytest.approx(row["retrain_s"] / row["unlearn_s"])
    assert 0 < row["unlearn_s"] < row["wall_s"]
    assert row["shared_s"] == 0.0


def test_search_rows_never_hold_the_test_set(shop: Workshop) -> None:
    spec = trial_of("finetune", SEARCH, hparams={"epochs": 1})
    row = checked(run_trial(spec, {}, shop))
    tested = [name for name in row if "test" in name.split("_")]
    assert len(tested) >= 3
    assert {row[name] for name in tested} == {None}
    final_only = [m for m in DEFAULT_METRICS if METRICS[m].final_only]
    assert set(final_only) <= set(json.loads(row["missing"]))
    assert row["distance_validation"] is not None
    assert not (Path(shop.settings.artifacts or "") / spec.trial_id).exists()


def test_search_rows_do_not_depend_on_the_test_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle that needs no list of names: another test set, the same row."""
    digits = DATASETS["digits"].fn

    def garbled(root: Path | None, download: bool, *, garble: bool) -> RawData:
        raw: RawData = digits(None, False, train_size=200, test_size=60)
        return dataclasses.replace(raw, x_test=255 - raw.x_test, y_test=raw.y_test[::-1].copy()) if garble else raw

    monkeypatch.setitem(DATASETS._entries, "garbled", DatasetEntry("garbled", garbled))
    rows = []
    for garble in (False, True):
        problem = problem_of(dataset=Choice("garbled", {"garble": garble}))
        spec = trial_of("gradient_ascent", SEARCH, problem, hparams={"lr": 1e-2})
        rows.append(checked(run_trial(spec, {}, shop_at(tmp_path))))
    assert rows[0]["dataset_checksum"] != rows[1]["dataset_checksum"]
    assert rows[0]["status"] == "ok"
    for column in (*(f"{m}{part}" for m in DEFAULT_METRICS for part in ("", "_retrained", "_gap")), "gates", "missing"):
        assert rows[0][column] == rows[1][column], column


def test_the_same_trial_twice_is_equal_to_the_bit(warm: Path, tmp_path: Path) -> None:
    """In a warm process, in a fresh one on the same store, on an empty store, and without shared values."""
    specs = [
        trial_of("finetune", hparams={"epochs": 1}),
        trial_of("deepclean", hparams={"epochs": 1, "fisher_samples": 40}),  # draws in ``once``
        trial_of("deepclean", SEARCH, hparams={"epochs": 1, "fisher_samples": 40}),
    ]
    for spec in specs:
        first = shop_at(warm)
        shops = [first, first, shop_at(warm), shop_at(tmp_path / "empty"), shop_at(warm, use_once=False)]
        rows = []
        for number, shop in enumerate(shops):
            torch.manual_seed(number)  # nothing may hang on the global state
            rows.append(checked(run_trial(spec, {}, shop)))
        assert rows[0]["status"] == "ok"
        for row in rows[1:]:
            assert [(c, row[c]) for c in COLUMNS if row[c] != rows[0][c]] == []
        (tmp_path / "empty").rename(tmp_path / spec.trial_id)


def test_seeds_and_hyperparameters_matter(shop: Workshop) -> None:
    base = trial_of("finetune", hparams={"epochs": 1, "lr": 0.01})
    others = [
        dataclasses.replace(base, unlearn_seed=1),
        dataclasses.replace(base, hparams={"epochs": 1, "lr": 0.02}),
        dataclasses.replace(base, problem=with_seed(base.problem, 1)),
    ]
    losses = [run_trial(spec, {}, shop)["retain_loss"] for spec in (base, *others)]
    assert len(set(losses)) == 4
    assert len({spec.trial_id for spec in (base, *others)}) == 4


# --- every end is a row ----------------------------------------------------------------------------------------------


def test_ok_with_gates_and_kept_files(shop: Workshop, method: Register) -> None:
    def scale(task: UnlearningTask, hp: Amount) -> nn.Module:
        with torch.no_grad():
            task.model.head.weight.mul_(hp.amount)  # type: ignore[union-attr, operator]
        task.report({"amount": hp.amount}, {"grid": torch.ones(2)})
        return task.model

    name = method(scale)
    shop.settings = dataclasses.replace(shop.settings, keep=("outputs", "weights"))
    spec = trial_of(name, hparams={"amount": 0.5})
    row = checked(run_trial(spec, {}, shop))
    assert row["status"] == "ok"
    gates = gates_of(row)
    assert {"retain_above_chance", "weights_changed", "outputs_changed", "retrained_not_worse"} <= gates.keys()
    assert all(holds is True for holds in gates.values())
    assert json.loads(row["reported"]) == {"amount": 0.5}
    folder = Path(shop.settings.artifacts or "") / spec.trial_id
    assert sorted(f.name for f in folder.iterdir()) == [f"{n}.safetensors" for n in ("outputs", "reported", "weights")]
    kept = unpack(load_file(folder / "outputs.safetensors"))
    assert set(kept) == set(FINAL_SPLITS) - {"test_triggered"}
    assert float(kept["test"].correct.double().mean()) == row["test_accuracy"]
    problem = shop.problem(spec.problem)
    model = problem.build()
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    with torch.no_grad():
        logits = model.eval()(problem.splits["test"].tensors()[0])
    torch.testing.assert_close(logits, kept["test"].logits)
    assert load_file(folder / "reported.safetensors")["grid"].tolist() == [1.0, 1.0]


def test_gates_see_an_unchanged_model_and_a_useless_one(shop: Workshop, method: Register) -> None:
    row = checked(run_trial(trial_of(method(lambda task, hp: task.model)), {}, shop))
    assert gates_of(row)["weights_changed"] is gates_of(row)["outputs_changed"] is False
    row = checked(run_trial(trial_of(method(lambda task, hp: task.model, identity=True)), {}, shop))
    assert gates_of(row)["weights_changed"] is gates_of(row)["outputs_changed"] is None
    assert row["retain_accuracy"] == run_trial(trial_of("original", REFERENCE), {}, shop)["retain_accuracy"]

    def constant(task: UnlearningTask, hp: Amount) -> nn.Module:
        with torch.no_grad():
            for p in task.model.parameters():
                p.zero_()
        return task.model

    row = checked(run_trial(trial_of(method(constant)), {}, shop))
    assert row["status"] == "ok"
    assert gates_of(row)["retain_above_chance"] is gates_of(row)["validation_above_chance"] is False


def test_a_predictor_that_is_no_module(shop: Workshop, method: Register) -> None:
    def ensemble(task: UnlearningTask, hp: Amount) -> Callable[[Tensor], Tensor]:
        models = [task.model, task.new_model()]
        return lambda images: sum(m(images) for m in models) / 2  # type: ignore[return-value]

    row = checked(run_trial(trial_of(method(ensemble, predictor=True)), {}, shop))
    assert row["status"] == "ok"
    assert gates_of(row)["weights_changed"] is None
    assert gates_of(row)["outputs_changed"] is True
    assert row["test_accuracy"] is not None
    assert row["forward_passes"] == 0.0  # evaluation is the harness's


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_diverged_weights(shop: Workshop, method: Register, value: float) -> None:
    def explode(task: UnlearningTask, hp: Amount) -> nn.Module:
        with torch.no_grad():
            task.model.head.bias[0] = value  # type: ignore[union-attr, operator, index]
        return task.model

    row = checked(run_trial(trial_of(method(explode)), {}, shop))
    assert (row["status"], row["reason"]) == ("diverged", "the unlearned model has non-finite weights")
    assert row["test_accuracy"] is None
    assert row["unlearn_s"] > 0


def test_diverged_outputs_but_not_a_class_switched_off(shop: Workshop, method: Register) -> None:
    def shifted(by: list[float]) -> Method:
        def predict(task: UnlearningTask, hp: Amount) -> Callable[[Tensor], Tensor]:
            return lambda images: task.model(images) + torch.tensor(by)  # type: ignore[no-any-return]

        return predict

    for first, status in ((float("inf"), "diverged"), (float("nan"), "diverged"), (-float("inf"), "ok")):
        row = checked(run_trial(trial_of(method(shifted([first] + [0.0] * 9), predictor=True)), {}, shop))
        assert row["status"] == status, first
    assert row["forget_accuracy"] == 0.0


def test_timeout(shop: Workshop, method: Register) -> None:
    def endless(task: UnlearningTask, hp: Amount) -> nn.Module:
        while True:
            for images, _ in task.retain.batches(32):
                task.model(images)
            time.sleep(0.01)

    shop.settings = dataclasses.replace(shop.settings, time_limit_s=0.1)
    row = checked(run_trial(trial_of(method(endless)), {}, shop))
    assert row["status"] == "timeout"
    assert "time limit" in row["reason"]
    assert 0.1 < row["unlearn_s"] < 2.0
    assert row["forward_passes"] > 0
    assert row["test_accuracy"] is None


def test_failed_says_what_and_where(shop: Workshop, method: Register) -> None:
    def broken(task: UnlearningTask, hp: Amount) -> nn.Module:
        raise KeyError("two\n  lines")  # HERE

    line = 1 + Path(__file__).read_text().split("\n").index('        raise KeyError("two\\n  lines")  # HERE')
    row = checked(run_trial(trial_of(method(broken)), {}, shop))
    assert row["status"] == "failed"
    assert row["reason"].startswith("KeyError: ")
    assert row["reason"].endswith(f"(test_trial.py:{line})")
    assert "\n" not in row["reason"]
    assert row["unlearn_s"] is not None


def test_failed_inside_torch_names_the_methods_line(shop: Workshop, method: Register) -> None:
    def misfit(task: UnlearningTask, hp: Amount) -> nn.Module:
        task.model(torch.zeros(1, 3))  # MISFIT
        return task.model

    line = 1 + Path(__file__).read_text().split("\n").index("        task.model(torch.zeros(1, 3))  # MISFIT")
    row = checked(run_trial(trial_of(method(misfit)), {}, shop))
    assert row["status"] == "failed"
    assert "contract.py" in row["reason"] or row["reason"].endswith(f"(test_trial.py:{line})")
    assert "linear.py" not in row["reason"]


def undeclared(task: UnlearningTask, hp: Amount) -> nn.Module:
    len(task.validation)
    return task.model


def out_of_memory(task: UnlearningTask, hp: Amount) -> nn.Module:
    raise torch.OutOfMemoryError("tried to allocate 7 TiB\nmore text")


@pytest.mark.parametrize(
    ("fn", "reason"),
    [
        (undeclared, "UndeclaredAccess: the method asked for the validation data"),
        (out_of_memory, "out of memory: tried to allocate 7 TiB"),
        (lambda task, hp: None, "must return a model, got NoneType"),
        (lambda task, hp: 3, "must return a model, got int"),
        (lambda task, hp: nn.Linear(2, 2), "RuntimeError"),
    ],
)
def test_failed_for_other_reasons(shop: Workshop, method: Register, fn: Method, reason: str) -> None:
    row = checked(run_trial(trial_of(method(fn)), {}, shop))
    assert row["status"] == "failed"
    assert reason in row["reason"]
    assert row["test_accuracy"] is None


def test_failed_settings_and_names_are_rows_too(shop: Workshop, method: Register) -> None:
    name = method(lambda task, hp: task.model)
    row = checked(run_trial(trial_of(name, hparams={"amuont": 1.0}), {}, shop))
    assert row["status"] == "failed"
    assert "did you mean amount" in row["reason"]


def test_data_that_differ_on_this_node_stop_the_run(shop: Workshop) -> None:
    """Not a failed row: every trial of this node would fail the same way."""
    with pytest.raises(UserError, match=r"dataset digits.* must be the same on every node, got checksum .* and stale"):
        run_trial(trial_of("finetune", problem=problem_of(checksum="stale")), {}, shop)


def test_a_method_that_writes_to_its_data_reaches_no_other_trial(shop: Workshop, method: Register) -> None:
    def vandal(task: UnlearningTask, hp: Amount) -> nn.Module:
        assert len(task.retain.images) == len(task.retain)  # the images of nobody else are behind it
        task.retain.images.fill_(7)
        task.retain.labels.fill_(0)
        return task.model

    before = run_trial(trial_of("finetune", hparams={"epochs": 1}), {}, shop)
    assert checked(run_trial(trial_of(method(vandal, needs={"retain"})), {}, shop))["status"] == "ok"
    after = run_trial(trial_of("finetune", hparams={"epochs": 1}), {}, shop)
    assert [(c, after[c]) for c in COLUMNS if after.get(c) != before.get(c)] == []


def test_skipped_runs_nothing(tmp_path: Path, method: Register) -> None:
    name = method(undeclared)
    row = checked(run_trial(trial_of(name), {"skip": "for classes only"}, shop_at(tmp_path)))
    assert (row["status"], row["reason"]) == ("skipped", "for classes only")
    assert row["unlearn_s"] is None
    assert not (tmp_path / "store").exists()


def test_a_store_that_takes_no_writes_ends_the_run_and_is_no_row(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("in the way")
    with pytest.raises(StorageError, match="store must take writes"):
        run_trial(trial_of("original", REFERENCE), {}, shop_at(tmp_path))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_worker_without_the_device_hands_the_trial_back(shop: Workshop) -> None:
    with pytest.raises(WrongDevice, match="no CUDA device"):
        run_trial(trial_of("finetune", problem=problem_of(device_type="cuda")), {}, shop)


# --- what the harness sets -------------------------------------------------------------------------------------------


def test_threads_are_the_specs_on_every_path(shop: Workshop, method: Register) -> None:
    seen: list[int] = []

    def look(task: UnlearningTask, hp: Amount) -> nn.Module:
        seen.append(torch.get_num_threads())
        return task.model

    name = method(look)
    try:
        for threads in (2, 1):
            row = checked(run_trial(trial_of(name, problem=problem_of(threads=threads)), {}, shop))
            assert row["threads"] == threads
    finally:
        torch.set_num_threads(1)
    assert seen == [2, 1]


def test_dropout_and_initialisers_draw_from_the_seed(shop: Workshop, method: Register) -> None:
    drawn: list[list[float]] = []

    def draw(task: UnlearningTask, hp: Amount) -> nn.Module:
        drawn.append(torch.rand(2).tolist() + torch.rand(2, generator=task.generator).tolist())
        return task.model

    name = method(draw)
    for position, seed in enumerate((0, 0, 1)):
        torch.manual_seed(position)
        state = torch.get_rng_state()
        run_trial(trial_of(name, unlearn_seed=seed), {}, shop)
        assert torch.equal(torch.get_rng_state(), state)
    assert drawn[0] == drawn[1]
    assert not set(drawn[0]) & set(drawn[2])


def test_a_method_hidden_in_once_looks_as_slow_on_a_hit(shop: Workshop, method: Register) -> None:
    def hidden(task: UnlearningTask, hp: Amount) -> nn.Module:
        def compute(generator: torch.Generator) -> Tensor:
            end = time.perf_counter() + 0.3
            while time.perf_counter() < end:
                task.model(task.forget.tensors()[0])
            return torch.ones(1)

        value = task.once("all of it", compute)["value"]
        with torch.no_grad():
            task.model.head.bias.add_(value * hp.amount)  # type: ignore[union-attr, operator, arg-type]
        return task.model

    name = method(hidden)
    rows = [
        run_trial(trial_of(name, SEARCH, hparams={"amount": a}, unlearn_seed=s), {}, shop)
        for a, s in ((0.1, 0), (0.2, 0), (0.3, 1))
    ]
    assert all(row["status"] == "ok" for row in rows)
    assert rows[0]["unlearn_s"] > 0.3
    assert max(r["unlearn_s"] for r in rows) < 1.2 * min(r["unlearn_s"] for r in rows)
    assert len({r["shared_s"] for r in rows}) == 1
    assert len({r["forward_passes"] for r in rows}) == 1
    assert rows[0]["forward_passes"] > 0
    finals = [run_trial(trial_of(name, hparams={"amount": a}), {}, shop) for a in (0.1, 0.2)]
    assert finals[0]["shared_s"] == finals[1]["shared_s"] != rows[0]["shared_s"]  # measured anew for the finals


def test_own_training_artefacts_reach_the_method_and_the_row(
    shop: Workshop, method: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(job: TrainingJob) -> Trained:
        model = job.new_model()
        job.fit(model)
        return Trained(model, {"codes": torch.full((10, 2), 3.0)})

    def use(task: UnlearningTask, hp: Amount) -> nn.Module:
        assert task.facts.original_kind == "coded"
        task.report({"code": float(task.artefacts["codes"].mean())})
        task.artefacts["codes"].zero_()
        return task.model

    monkeypatch.setitem(TRAININGS._entries, "coded", TrainingEntry("coded", train))
    name, training = method(use, training="coded"), Training("coded")
    for _ in range(2):
        row = checked(run_trial(trial_of(name, training=training), {}, shop))
        assert row["status"] == "ok", row["reason"]
        assert json.loads(row["reported"]) == {"code": 3.0}
        assert (row["artefact_bytes"], row["original_kind"]) == (80, "coded")
        assert row["original_train_s"] > 0
    plain = checked(run_trial(trial_of("finetune", hparams={"epochs": 1}), {}, shop))
    assert row["retrain_s"] == plain["retrain_s"]  # gaps and ratios are to the standard recipe


def test_placement_is_in_the_row(warm: Path) -> None:
    settings = shop_at(warm).settings
    placed = Workshop(settings, placement=Placement("3", "9.9", False, "node7"))
    row = checked(run_trial(trial_of("original", REFERENCE), {"variant": "v"}, placed))
    assert (row["device_ids"], row["ray_version"], row["exclusive"], row["node"]) == ("3", "9.9", False, "node7")
    assert row["variant"] == "v"


# --- specs -----------------------------------------------------------------------------------------------------------


def test_specs_survive_json_with_their_id() -> None:
    spec = trial_of("finetune", hparams={"epochs": 2, "lr": 1.0}, training=Training("coded", 2, {"a": [1, 2]}))
    back = TrialSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert back.trial_id == spec.trial_id
    assert back.problem.id == spec.problem.id
    assert TrialSpec.from_dict(back.to_dict()) == back


def test_whatever_decides_a_result_is_in_the_id() -> None:
    base = trial_of("finetune")
    problem = base.problem
    changes: list[TrialSpec] = [
        dataclasses.replace(base, **{k: v})  # type: ignore[arg-type]
        for k, v in {
            "method": "gradient_ascent",
            "method_version": 2,
            "hparams": {"epochs": 1},
            "unlearn_seed": 1,
            "phase": SEARCH,
            "training": Training("coded"),
            "protocol": "0",
        }.items()
    ]
    changes += [
        dataclasses.replace(base, problem=dataclasses.replace(problem, **{k: v}))  # type: ignore[arg-type]
        for k, v in {
            "checksum": "x",
            "model": Choice("lenet5"),
            "scenario": Choice("class", {"classes": [1]}),
            "recipe": {"epochs": 1},
            "train_seed": 1,
            "split_seed": 1,
            "draw_seed": 1,
            "validation": 0.2,
            "threads": 2,
            "device_type": "cuda",
        }.items()
    ]
    assert len({base.trial_id, *(spec.trial_id for spec in changes)}) == len(changes) + 1


# --- golden ----------------------------------------------------------------------------------------------------------

GOLDEN_TRIALS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "original": ("original", REFERENCE, "class", {}),
    "retrain": ("retrain", REFERENCE, "class", {}),
    "finetune class": ("finetune", FINAL, "class", {"epochs": 1}),
    "finetune random search": ("finetune", SEARCH, "random", {"epochs": 1}),
    "deepclean class": ("deepclean", FINAL, "class", {"epochs": 1, "fisher_samples": 60}),
    "gradient_ascent random": ("gradient_ascent", FINAL, "random", {"epochs": 1, "lr": 1e-3}),
}
GOLDEN_COLUMNS = (
    "forget_size",
    "forward_passes",
    "backward_passes",
    "retrain_share",
    *(f"{m}{part}" for m in DEFAULT_METRICS for part in ("", "_retrained", "_gap")),
)


def golden_numbers(folder: Path) -> dict[str, Any]:
    """The numbers of the golden run, by trial and column."""
    shop = shop_at(folder)
    numbers: dict[str, Any] = {"versions": {"protocol": PROTOCOL} | {m.name: m.version for m in INFOS}}
    for label, (name, phase, scenario, hparams) in GOLDEN_TRIALS.items():
        row = run_trial(trial_of(name, phase, problem_of(scenario), hparams=hparams), {}, shop)
        assert row["status"] == "ok", row.get("reason")
        numbers["versions"][name] = METHODS[name].version
        numbers[label] = {column: row[column] for column in GOLDEN_COLUMNS if row.get(column) is not None}
    return numbers


def test_golden_run(tmp_path: Path) -> None:
    expected = json.loads(GOLDEN.read_text())
    found = golden_numbers(tmp_path)
    assert found["versions"] == expected["versions"], "a version moved: write golden.json again, see the docstring"
    assert found.keys() == expected.keys()
    moved = []
    for label in GOLDEN_TRIALS:
        for column in sorted(expected[label].keys() | found[label].keys()):
            old, new = expected[label].get(column), found[label].get(column)
            if old is None or new is None or abs(old - new) > 1e-4:
                moved.append(f"{label}.{column}: {old} -> {new}")
    assert moved == [], "results moved without a version bump; see the docstring of this file"


@pytest.fixture(autouse=True)
def global_state_is_put_back() -> Iterator[None]:
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


if __name__ == "__main__":
    import tempfile

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(golden_numbers(Path(scratch)), indent=1, sort_keys=True) + "\n")
