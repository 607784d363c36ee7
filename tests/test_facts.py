"""The plan of a results folder, made again from what lies beside its rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raybench.facts import keep_facts, kept_plan
from raybench.run import Options, prepare


@pytest.mark.parametrize("file", [None, "wanted.txt"])
def test_the_kept_plan_asks_for_the_same_trials(
    make_spec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = make_spec(methods=["deepclean", {"name": "finetune", "hparams": {"epochs": 1, "lr": 0.1}}])
    if file is not None:
        Path(file).write_text("1\n2\n3\n")
        spec["problems"][0]["scenarios"] = [{"index": {"file": file}}]
    prepared = prepare(spec, Options(results=str(tmp_path / "out"), store=str(tmp_path / "store")))
    keep_facts(prepared.results, prepared.plan)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    if file is not None:
        (tmp_path / file).unlink()  # another machine does not have it
    plan = kept_plan(str(tmp_path / "out"))

    def ids(plan: Any) -> list[str]:
        return [r.spec.trial_id for r in (*plan.references(), *plan.finals(prepared.ledger))]

    assert ids(plan) == ids(prepared.plan)
    assert [search.id for search in plan.searches()] == [search.id for search in prepared.plan.searches()]
