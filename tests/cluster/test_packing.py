"""Trials with measured shares of a GPU on pretended GPUs: packed, never oversubscribed, larger where memory ran out."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace

import ray
from ray import tune

from raybench.board import Board
from raybench.cluster.packing import Packing
from raybench.cluster.search import BoardSearcher, run_board
from raybench.cluster.trial_actor import Outcome
from raybench.experiment import make_experiment
from raybench.footprint import Footprints, share_of
from raybench.lanes import Lanes
from raybench.ledger import Ledger
from raybench.plan import DataFacts, Plan
from raybench.rounds import ask_optuna
from raybench.shares import Shares
from raybench.spec import TrialSpec

GIB = 2**30
DEVICE = 16 * GIB
NEEDS = {"finetune": GIB, "gradient_ascent": 3 * GIB, "neggrad_plus": 6 * GIB}  # an eighth, a quarter, a half
PROBLEM = {"dataset": "digits", "models": ["mlp"], "scenarios": [{"name": "class", "classes": [0]}]}
NOWHERE = ""


class Reporter(tune.Trainable):
    """In place of ``SearchTrial``: holds its share for a moment and says when and where. Travels by value.

    ``kit``: how long, what the methods need, and a folder where so many lanes wait for each other, however slow the
    machine starts them.
    """

    def setup(self, config, kit):
        self.request, self.share = config["request"], config["gpu"]
        self.seconds, self.needs, self.folder, self.lanes = kit

    def reset_config(self, new_config):
        self.request = new_config["request"]
        return new_config["gpu"] == self.share

    def feed(self, request):
        self.request = request

    def step(self):
        began = time.time()
        if self.folder:
            (Path(self.folder) / str(os.getpid())).touch()
            while len(list(Path(self.folder).iterdir())) < self.lanes and time.time() < began + 240:
                time.sleep(0.05)
        time.sleep(self.seconds)
        row = {"began": began, "ended": time.time(), "gpus": ray.get_gpu_ids(), "share": self.share}
        memory = self.share * 16 * 2**30 < self.needs[self.request["spec"]["method"]]
        found = None if memory else row
        return {"outcome": SimpleNamespace(row=found, memory=memory, request=self.request, share=self.share)}


class Searcher(BoardSearcher):
    """Does what a worker on CUDA does in ``run_trial``, and makes the row."""

    def __init__(self, footprints, *arguments):
        super().__init__(*arguments)
        self.footprints, self.hungry = footprints, []

    def took(self, trial_id, outcome):
        spec = TrialSpec.from_dict(outcome.request["spec"])
        if outcome.row is None:
            self.hungry.append(outcome.share)
        else:
            self.footprints.note(spec, NEEDS[spec.method], GIB // 4)
            outcome.row |= row_of(spec) | {"need": self.footprints.get(spec)}
        return super().took(trial_id, Outcome(outcome.row, "out of memory", outcome.memory))


def row_of(spec):
    identity = {"trial_id": spec.trial_id, "phase": spec.phase, "method": spec.method, "status": "ok"}
    return {**identity, "unlearn_s": 1.0, "distance_validation": 0.1, "retrain_share": 0.1}


def make_plan(methods, trials):
    raw = {"name": "packing", "problems": [PROBLEM], "methods": methods, "search": {"trials": trials, "round_size": 4}}
    return Plan(make_experiment(raw), {"digits": DataFacts("c0", 10, (1, 8, 8))}, ["cuda"])


def pack(plan, store, gpus, slots, gather=NOWHERE, lanes=0):
    """Run the searches of a plan; the rows, first come first, and the shares within which memory ran out."""
    Reporter.__module__ = "__main__"  # so that it is pickled by value
    footprints, rows, hungry = Footprints(store), [], []
    board = Board(plan, Ledger(), ask_optuna, lambda records: None)
    shares = Shares(1.0, footprints, DEVICE)
    while not board.done:
        packing = Packing(shares, Lanes(gpus, slots, patience_s=2.0))
        searcher = Searcher(footprints, board, rows.append, None, lambda request: None, packing)
        run_board(searcher, (0.3, NEEDS, gather, lanes), {"cpu": 1.0, "gpu": 1.0}, slots, trainable=Reporter)
        hungry += searcher.hungry
        for request in searcher.alone:
            board.finished(row_of(request.spec))
    return sorted(rows, key=lambda row: row["began"]), hungry


def check(rows):
    """Each has the share that it needs, and no GPU more than there is of it; returns how many ran at once."""
    for row in rows:
        assert len(row["gpus"]) == 1
        assert row["share"] == share_of(row["need"], DEVICE)
        beside = [r for r in rows if r["gpus"] == row["gpus"] and r["began"] <= row["began"] < r["ended"]]
        assert sum(r["share"] for r in beside) <= 1.0
    return max(sum(r["began"] <= row["began"] < r["ended"] for r in rows) for row in rows)


def test_known_shares_pack_two_pretended_gpus(local_ray, tmp_path):
    """More trials at once than GPUs; three kinds, so lanes of one share make room for others."""
    plan, known = make_plan(list(NEEDS), trials=4), Footprints(tmp_path)
    for search in plan.searches():
        spec = plan.search_requests(search, {})[0].spec
        known.note(spec, NEEDS[spec.method], GIB // 4)
    (tmp_path / "gather").mkdir()
    rows, hungry = pack(plan, tmp_path, gpus=2, slots=8, gather=str(tmp_path / "gather"), lanes=3)
    assert (len({row["trial_id"] for row in rows}), len(rows), hungry) == (12, 12, [])
    assert {row["share"] for row in rows} == {2 / 16, 4 / 16, 8 / 16}
    assert check(rows) > 2


def test_memory_that_runs_out_within_a_share_makes_the_next_shares_larger(local_ray, tmp_path):
    """The store knows too little of a method: what one trial finds out, the later ones and the next run have."""
    plan, known = make_plan(["gradient_ascent"], trials=8), Footprints(tmp_path)
    spec = plan.search_requests(plan.searches()[0], {})[0].spec
    known.note(spec, GIB // 2, GIB // 4)
    assert share_of(known.get(spec), DEVICE) == 1 / 16
    rows, hungry = pack(plan, tmp_path, gpus=1, slots=1)
    assert hungry == sorted(hungry)
    assert hungry[0] == 1 / 16
    assert len(rows) + len(hungry) == 8
    assert min(row["share"] for row in rows) > max(hungry)
    assert share_of(known.get(spec), DEVICE) * DEVICE >= NEEDS["gradient_ascent"]
