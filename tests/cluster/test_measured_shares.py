"""A whole run with ``gpu: measured`` on two pretended GPUs: references, search, finals, and the run after it."""

from __future__ import annotations

import pandas as pd

from raybench.cluster.session import Session

DEVICE = 8 * 2**30
SHARE = 3 / 16  # of one GiB with head-room and a quarter for CUDA itself, on 8 GiB


def test_the_first_search_trial_has_a_gpu_and_the_store_spares_the_next_run_that(drive, on, capped, spec, monkeypatch):
    monkeypatch.setattr(Session, "gpu_bytes", lambda self, resources: DEVICE)
    methods = [{"name": "finetune", "space": {"epochs": {"low": 1, "high": 3}}}]
    raw = spec(methods=methods, plugins=["pretended_cuda"], resources={"gpu": "measured"})
    tables = []
    for results, alone in (("first", 1), ("second", 0)):
        found = drive(raw, on(capped(4)), results=results, device_type="cuda", store=None)
        rows = found.store.trials()
        assert set(rows["status"]) == {"ok"}
        search = rows[rows["phase"] == "search"].sort_values("started_at")
        assert len(search) == 4
        assert list(search["exclusive"]) == [True] * alone + [False] * (4 - alone)
        assert rows.loc[rows["phase"] != "search", "exclusive"].all()
        never_too_many(rows)
        tables.append(found.table())
    pd.testing.assert_frame_equal(*tables, check_exact=True)


def never_too_many(rows):
    """At no moment do the shares on one GPU add up to more than it."""
    rows = rows[rows["device_ids"] != ""]
    ends = rows["started_at"] + pd.to_timedelta(rows["wall_s"], unit="s")
    for moment in rows["started_at"]:
        now = rows[(rows["started_at"] <= moment) & (ends > moment)]
        held = now["exclusive"].map({True: 1.0, False: SHARE}).groupby(now["device_ids"]).sum()
        assert held.max() <= 1.0
