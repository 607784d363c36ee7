"""A whole run with ``gpu: measured`` on two pretended GPUs: references, search, finals, and the run after it."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from raybench import trial
from raybench.cluster.session import Session
from raybench.workshop import Workshop

DEVICE = 8 * 2**30
SHARE = 3 / 16  # of one GiB with head-room and a quarter for CUDA itself, on 8 GiB


def test_the_first_search_trial_has_a_gpu_and_the_store_spares_the_next_run_that(drive, on, capped, spec, monkeypatch):
    monkeypatch.setattr(Session, "gpu_bytes", lambda self, resources: DEVICE)
    methods = [{"name": "finetune", "space": {"epochs": {"low": 1, "high": 3}}}]
    raw = spec(methods=methods, plugins=["pretended_cuda"], resources={"gpu": "measured"})
    tables = []
    for results, alone in (("first", 1), ("second", 0)):
        found = drive(raw, on(capped(4)), results=results, device_types=["cuda"], store=None)
        rows = found.store.trials()
        assert set(rows["status"]) == {"ok"}
        search = rows[rows["phase"] == "search"].sort_values("started_at")
        assert len(search) == 4
        assert list(search["exclusive"]) == [True] * alone + [False] * (4 - alone)
        assert rows.loc[rows["phase"] != "search", "exclusive"].all()
        never_too_many(rows)
        tables.append(found.table())
    pd.testing.assert_frame_equal(*tables, check_exact=True)


@pytest.mark.parametrize("gpu", [0.5, "measured"])
def test_each_device_type_side_by_side(drive, on, capped, spec, serial, monkeypatch, gpu):
    """Trials on CPU hold no GPU, those on CUDA one or a share; and the rows are those of a run in one process."""
    monkeypatch.setattr(Session, "gpu_bytes", lambda self, resources: DEVICE)
    methods = [{"name": "finetune", "space": {"epochs": {"low": 1, "high": 3}}}]
    raw = spec(methods=methods, plugins=["pretended_cuda"], resources={"gpu": gpu}, devices="each")
    found = drive(raw, on(capped(4)), device_types=["cuda", "cpu"], store=None)
    rows = found.store.trials()
    assert set(rows["status"]) == {"ok"}
    on_gpu = rows["device_ids"] != ""
    assert (on_gpu == (rows["device_type"] == "cuda")).all()
    assert (
        rows.groupby(["device_type", "phase"])
        .size()
        .unstack()
        .loc["cpu"]
        .equals(rows.groupby(["device_type", "phase"]).size().unstack().loc["cuda"])
    )
    assert rows.loc[on_gpu & (rows["phase"] != "search"), "exclusive"].all()
    assert not rows.loc[~on_gpu, "exclusive"].any()
    never_too_many(rows[on_gpu], 0.5 if gpu == 0.5 else SHARE)
    monkeypatch.setattr(Workshop, "device", lambda self, device_type: torch.device("cpu"))
    for name, value in (("begin", None), ("most_reserved", 2**30), ("context_bytes", 2**28)):
        monkeypatch.setattr(trial, name, lambda value=value: value)
    alone = drive(raw, serial, results="alone", device_types=["cuda", "cpu"], store=None)
    pd.testing.assert_frame_equal(found.table(), alone.table(), check_exact=True)


def test_what_runs_out_of_memory_on_the_cpu_gets_a_node_and_no_gpu(drive, on, capped, spec):
    methods = [{"name": "hungry", "hparams": {"strength": 0.5}}]
    raw = spec(methods=methods, plugins=["pretended_cuda"], resources={"gpu": 0.5}, devices="each")
    rows = drive(raw, on(capped(2)), device_types=["cuda", "cpu"]).store.trials()
    hungry = rows[rows["method"] == "hungry"].set_index("device_type")
    assert sorted(hungry.index) == ["cpu", "cuda"]
    assert hungry["reason"].str.startswith("out of memory").all()
    assert hungry["exclusive"].all()
    assert (hungry.loc["cpu", "device_ids"], hungry.loc["cuda", "device_ids"] != "") == ("", True)


def never_too_many(rows, share=SHARE):
    """At no moment do the shares on one GPU add up to more than it."""
    rows = rows[rows["device_ids"] != ""]
    ends = rows["started_at"] + pd.to_timedelta(rows["wall_s"], unit="s")
    for moment in rows["started_at"]:
        now = rows[(rows["started_at"] <= moment) & (ends > moment)]
        held = now["exclusive"].map({True: 1.0, False: share}).groupby(now["device_ids"]).sum()
        assert held.max() <= 1.0
