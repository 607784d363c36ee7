"""One trial: its row in words, its numbers once more, and its model as a file that builds the network."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import raybench
from raybench.errors import UserError
from raybench.leaderboard.query import load_trials
from raybench.leaderboard.store import ResultStore
from raybench.show import find_row


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: a search, finals with their outputs, an own training, and a method that is skipped."""
    where = tmp_path_factory.mktemp("run")
    spec = {
        "name": "tiny",
        "problems": [
            {
                "dataset": {"name": "digits", "train_size": 300},
                "models": [{"name": "mlp", "hidden": [8]}],
                "scenarios": [{"class": {"classes": [0]}}, {"random": {"fraction": 0.2}}],
            }
        ],
        "methods": ["finetune", {"name": "mnemonic", "space": {}}],
        "recipe": {"epochs": 3},
        "seeds": {"train": [0]},
        "search": {"trials": 2, "round_size": 2},
    }
    outcome = raybench.run(spec, results=str(where / "results"), store=str(where / "store"), serial=True, quiet=True)
    assert not outcome.bad
    return where


@pytest.fixture
def call(folder: Path, cli: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("RAYBENCH_STORE", str(folder / "store"))

    def run(*arguments: str) -> Any:
        return cli(*arguments, "--results", str(folder / "results"))

    return run


def trial(folder: Path, **which: Any) -> dict[str, Any]:
    rows = load_trials(folder / "results")
    for name, value in which.items():
        rows = rows[rows[name] == value]
    return {str(k): v for k, v in rows.iloc[0].to_dict().items()}


def test_show_prints_everything_of_a_row(folder, call):
    row = trial(folder, method="finetune", phase="final")
    said = call("show", row["trial_id"][:8])
    assert said.code == 0, said.err
    for word in ("Hyperparameters", "Gates", "Provenance", row["trial_id"], f"{row['retain_accuracy']:.6g}", "lr"):
        assert word in said.out
    plain = json.loads(call("show", row["trial_id"], "--format", "json").out)
    assert set(load_trials(folder / "results").columns) <= set(plain)
    assert plain["retain_accuracy"] == row["retain_accuracy"]
    assert plain["hparams"] == json.loads(row["hparams"])
    assert plain["stop_reason"] is None
    again = shlex.split(plain["command"])
    assert again == ["raybench", "again", row["trial_id"], "--results", str(folder / "results")]


def test_which_trial_must_be_plain(folder, call):
    nothing = call("show", "zzz")
    assert nothing.code == 2
    assert "'zzz' which fits none" in nothing.err
    everything = call("show", "")
    assert everything.code == 2
    assert " more; the ids are in the column trial_id" in everything.err
    elsewhere = call("show", "a", "--results", str(folder / "nowhere"))
    assert elsewhere.code == 2


@pytest.mark.parametrize(
    "which",
    [
        {"method": "finetune", "phase": "final", "scenario": "class(0)"},
        {"method": "finetune", "phase": "search"},
        {"method": "mnemonic", "phase": "final"},
        {"method": "retrain", "unlearn_seed": 1},
    ],
)
def test_again_makes_the_same_numbers_and_no_row(folder, call, which):
    before = load_trials(folder / "results")
    row = trial(folder, **which, status="ok")
    said = call("again", row["trial_id"])
    assert said.code == 0, said.out + said.err
    count = int(said.out.split(" numbers are the same")[0].split()[-1])
    assert f"{count} of {count} numbers are the same to the bit" in said.out
    assert count > 10
    pd.testing.assert_frame_equal(load_trials(folder / "results"), before)


def test_again_says_what_differs(folder, tmp_path, cli):
    row = find_row(str(folder / "results"), trial(folder, method="finetune", phase="final")["trial_id"])
    store = ResultStore(folder / "results")
    rows = store.trials()
    rows["forget_accuracy"] += 0.25
    other = ResultStore.open_for_writing(tmp_path / "other", store.metrics_on_disk())
    other.append([{k: None if v is pd.NaT else v for k, v in r.items()} for r in rows.to_dict("records")])
    (tmp_path / "other" / "spec.yaml").write_bytes((folder / "results" / "spec.yaml").read_bytes())
    said = cli("again", row["trial_id"], "--results", str(tmp_path / "other"), "--store", str(folder / "store"))
    assert said.code == 3
    assert "forget_accuracy" in said.out
    assert "some DIFFER" in said.out


def test_what_cannot_run_again_is_one_line(folder, call):
    skipped = trial(folder, status="skipped")
    said = call("again", skipped["trial_id"])
    assert said.code == 2
    assert "was skipped" in said.err
    searched = trial(folder, phase="search")
    said = call("again", searched["trial_id"], "--keep", "weights")
    assert said.code == 2
    assert "only final and reference trials keep weights" in said.err


@pytest.mark.parametrize("method", ["finetune", "mnemonic"])
def test_export_and_load_give_the_model_of_the_row(folder, call, tmp_path, method):
    row = trial(folder, method=method, phase="final", scenario="class(0)")
    target = tmp_path / "sub" / "model.safetensors"
    refused = call("export", row["trial_id"], str(target))
    assert refused.code == 2
    way_out = refused.err.split("make them again with: ")[1].split(" (or")[0]
    assert not target.exists()
    program, *arguments = shlex.split(way_out)
    assert program == "raybench"
    assert call(*arguments[:-4], *arguments[-2:]).code == 0  # less its --results DIR, which call adds
    said = call("export", row["trial_id"][:10], str(target))
    assert said.code == 0, said.err
    model = raybench.load_model(target)
    assert not model.training
    told = model.raybench
    assert told["trial_id"] == row["trial_id"]
    assert told["model"] == {"name": "mlp", "options": {"hidden": [8]}}
    assert told["forget_classes"] == [0]
    assert told["hparams"] == json.loads(row["hparams"])
    # The kept outputs of the run are an independent witness: the same logits on the test images.
    from raybench.datasets.digits import digits

    raw = digits(None, False, train_size=300)
    mean, std = (torch.tensor(told[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        logits = model((torch.from_numpy(raw.x_test).float() / 255 - mean) / std)
    gone = torch.from_numpy(raw.y_test) == 0
    kept = load_file(folder / "results" / "artifacts" / row["trial_id"] / "outputs.safetensors")
    torch.testing.assert_close(logits[~gone], kept["test.logits"])
    torch.testing.assert_close(logits[gone], kept["test_forgotten.logits"])


def test_files_that_are_no_model_are_refused(tmp_path):
    with pytest.raises(UserError, match="must be a safetensors file"):
        raybench.load_model(tmp_path / "nothing")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(UserError, match="must be a safetensors file"):
        raybench.load_model(tmp_path / "text")
    save_file({"a": torch.ones(2)}, tmp_path / "bare")
    with pytest.raises(UserError, match="without its header"):
        raybench.load_model(tmp_path / "bare")
    told = {"plugins": [], "model": {"name": "mlp", "options": {"hidden": [8]}}, "num_classes": 10,
            "input_shape": [1, 8, 8], "training": {"kind": "standard", "hparams": {}}, "method": "odd"}  # fmt: skip
    save_file({"a": torch.ones(2)}, tmp_path / "odd", metadata={"raybench": json.dumps(told)})
    with pytest.raises(UserError, match="odd returned another network"):
        raybench.load_model(tmp_path / "odd")
