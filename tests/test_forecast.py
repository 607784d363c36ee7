"""``raybench plan`` and ``raybench doctor``: they say what is true, and train nothing."""

from __future__ import annotations

import json

import pytest

from raybench.cli import main
from raybench.doctor import examine

SPEC = """
name: planned
problems:
  - dataset: {name: digits, train_size: 200}
    models: [mlp]
    scenarios: [class, {label_noise: {fraction: 0.2}}]
recipe: {epochs: 2}
methods: [finetune, mnemonic]
seeds: {train: [0, 1]}
search: {trials: 2, round_size: 2}
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "planned.yaml").write_text(SPEC)
    return tmp_path


def command(folder, *words):
    store = str(folder / "store")
    return [*words[:1], str(folder / "planned.yaml"), "--results", str(folder / "out"), "--store", store, *words[1:]]


def test_plan_counts_before_and_after(folder, capsys):
    assert main(command(folder, "plan", "--format", "json")) == 0
    before = json.loads(capsys.readouterr().out)
    # 2 problems x 2 seeds x (original + 2 retrained), the originals trained with codes on the class problem, and the
    # clean models beside the wrong labels
    assert before["stages"]["references"] == {"total": 16, "done": 0, "failed": 0, "to_run": 16}
    assert before["stages"]["search"] == {
        "total": 6,
        "done": 0,
        "failed": 0,
        "to_run": 6,
    }  # mnemonic is skipped on label noise
    assert before["stages"]["finals"] == {"total": 8, "done": 0, "failed": 0, "to_run": 8}
    assert before["skipped_lines"] == 1
    assert before["estimate"]["seconds"] > 0
    assert not (folder / "out").exists()
    assert not (folder / "store").exists()

    assert main(command(folder, "run", "--serial", "--quiet")) == 0
    capsys.readouterr()
    assert main(command(folder, "plan")) == 0
    text = capsys.readouterr().out
    assert "nothing to run: no reference model to train, no trial left" in text

    assert main(command(folder, "plan", "--set", "search.trials=4", "--format", "json")) == 0
    longer = json.loads(capsys.readouterr().out)
    assert longer["stages"]["search"] == {"total": 12, "done": 6, "failed": 0, "to_run": 6}
    assert longer["estimate"]["basis"] == "rows so far"


def test_doctor_reports_what_it_tried(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("raybench.doctor._ray", lambda address: "not started here")
    report, healthy = examine(str(tmp_path), None)
    assert healthy
    assert "ok   data digits" in report
    assert "-    data mnist" in report
    assert "plug-ins" in report


def test_doctor_finds_what_is_broken(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("RAYBENCH_STORE", str(tmp_path / "file" / "store"))
    monkeypatch.setattr("raybench.doctor._ray", lambda address: "not started here")
    report, healthy = examine(None, None)
    assert not healthy
    assert "FAIL store" in report
