"""Scenarios that need more than labels, through the command line: a list in the data folder, and repeated samples."""

from __future__ import annotations

import raybench as rb


def test_listed_and_over_represented_samples(cli, make_spec, tmp_path):
    (tmp_path / "rows.txt").write_text("\n".join(map(str, range(0, 300, 7))))
    spec = make_spec(methods=["finetune", "sisa"], search={"trials": 1}, recipe={"epochs": 1}, gold_seeds=1)
    spec["problems"][0]["scenarios"] = [
        {"index": {"file": "rows.txt"}},
        {"overfit": {"fraction": 0.1, "repeats": 3}},
    ]
    said = cli("run", "{spec}", "--serial", "--results", "out", "--data", str(tmp_path), spec=spec)
    assert "Traceback" not in said.err
    trials = rb.load_trials("out").query("phase == 'final' and status == 'ok'")
    sizes = trials.groupby("scenario").forget_size.unique().map(list).to_dict()
    assert sizes["overfit(fraction=0.1, repeats=3)"] == [81]  # 27 of the 270 that are trained on, three times
    (listed,) = sizes["index(file=rows.txt)"]
    assert 30 <= listed <= 43
    assert set(trials.method) == {"finetune", "sisa"}
    (tmp_path / "rows.txt").write_text("3\n3\n")
    refused = cli("run", "{spec}", "--serial", "--results", "out", "--data", str(tmp_path), spec=spec)
    assert refused.code == 2
    assert "must differ, got 3 twice" in refused.err
    assert len(refused.err.strip().splitlines()) == 1
