"""Every end of a trial is a row, or stops the run."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from raybench.errors import StorageError, UserError
from raybench.evaluation import FINAL_SPLITS, unpack
from raybench.spec import REFERENCE
from raybench.task import UnlearningTask
from raybench.trial import run_trial
from raybench.workshop import Workshop, WrongDevice
from tests.trial.parts import COLUMNS, Amount, Method, Register, checked, gates_of, problem_of, shop_at, trial_of


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
    assert row["reason"].endswith(f"(test_ends.py:{line})")
    assert "\n" not in row["reason"]
    assert row["unlearn_s"] is not None


def test_failed_inside_torch_names_the_methods_line(shop: Workshop, method: Register) -> None:
    def misfit(task: UnlearningTask, hp: Amount) -> nn.Module:
        task.model(torch.zeros(1, 3))  # MISFIT
        return task.model

    line = 1 + Path(__file__).read_text().split("\n").index("        task.model(torch.zeros(1, 3))  # MISFIT")
    row = checked(run_trial(trial_of(method(misfit)), {}, shop))
    assert row["status"] == "failed"
    assert "contract.py" in row["reason"] or row["reason"].endswith(f"(test_ends.py:{line})")
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
