"""The board: whatever the number of slots, the order of completion, failures and kills, the same settings are tried."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest

from raybench.board import Board
from raybench.ledger import Ledger
from raybench.plan import Plan
from raybench.rounds import ask_optuna
from raybench.seeding import to_json
from raybench.selection import settings_of


class Killed(Exception):
    """The driver dies here."""


@pytest.fixture
def run_board(fake_row: Any) -> Any:
    """Run all searches with ``slots`` workers that finish in random order; returns the ledger and the ids run."""

    def run(
        plan: Plan,
        slots: int = 1,
        seed: int = 0,
        fails: float = 0.0,
        ledger: Ledger | None = None,
        kill: int = -1,
        out_of_turn: bool = False,
    ) -> tuple[Ledger, list[str]]:
        ledger = ledger if ledger is not None else Ledger()
        recorded: set[str] = {trial_id for trial_id, _ in ledger.table.values()}
        draw, running, ran = random.Random(seed), [], []
        board = Board(plan, ledger, ask_optuna, lambda records: recorded.update(r["trial_id"] for r in records))

        def pick(board: Board) -> Any:
            ready = board.ready()
            assert board.waiting == len(ready)
            if ready:
                board.take(taken := ready[draw.randrange(len(ready))])
                return taken
            return None

        while not board.done:
            while len(running) < slots and (request := pick(board) if out_of_turn else board.next()) is not None:
                assert request.spec.trial_id in recorded, "a trial is handed out before its round is on storage"
                assert request.spec.trial_id not in ran, "a trial is handed out twice"
                running.append(request)
                ran.append(request.spec.trial_id)
            assert running, "nothing runs, nothing is handed out, and the searches are not done"
            if len(ran) - len(running) == kill:
                raise Killed
            done = running.pop(draw.randrange(len(running)))
            # Whether a trial fails is its own property, not one of the order.
            failed = random.Random(done.spec.trial_id).random() < fails
            board.finished(fake_row(done, "failed" if failed else "ok"))
        assert board.next() is None
        return ledger, ran

    return run


@pytest.fixture
def plan(make_spec: Any, plan_of: Any) -> Plan:
    made: Plan = plan_of(wide_spec(make_spec))
    return made


def wide_spec(make_spec: Any, **search: Any) -> dict[str, Any]:
    spec: dict[str, Any] = make_spec(
        methods=["finetune", "gradient_ascent", "deepclean"],
        seeds={"train": [0, 1]},
        search={"trials": 7, "round_size": 3, "train_seeds": "all", **search},
    )
    return spec


@pytest.mark.parametrize("fails", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("slots", [2, 3, 8, 100])
def test_same_settings_with_any_number_of_slots(plan: Plan, run_board: Any, slots: int, fails: float) -> None:
    alone, _ = run_board(plan, fails=fails)
    for seed in range(5):
        together, _ = run_board(plan, slots, seed, fails)
        assert to_json(sorted(map(str, together.table.items()))) == to_json(sorted(map(str, alone.table.items())))
        assert together.rows.keys() == alone.rows.keys()


@pytest.mark.parametrize("slots", [1, 3, 8])
def test_same_settings_where_trials_are_taken_out_of_turn(plan: Plan, run_board: Any, slots: int) -> None:
    alone, ran = run_board(plan)
    for seed in range(3):
        chosen, again = run_board(plan, slots, seed, out_of_turn=True)
        assert chosen.table == alone.table
        assert sorted(again) == sorted(ran)


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid", "qmc"])
def test_same_settings_with_every_sampler(make_spec: Any, plan_of: Any, run_board: Any, sampler: str) -> None:
    spec = wide_spec(make_spec, sampler=sampler)
    alone, together = run_board(plan_of(spec)), run_board(plan_of(spec), 5, 1)
    assert alone[0].table == together[0].table


@pytest.mark.parametrize("kill", [0, 1, 4, 9, 17, 30])
def test_same_settings_after_a_kill(plan: Plan, run_board: Any, kill: int) -> None:
    """What survives is what was on storage: rows that were finished, rounds that were recorded."""
    whole, ran = run_board(plan, fails=0.2)
    ledger = Ledger()
    with pytest.raises(Killed):
        run_board(plan, 4, kill, 0.2, ledger, kill)
    before = set(ledger.rows)
    assert len(before) == kill
    rows = list(ledger.rows.items())
    random.Random(kill).shuffle(rows)  # rows come back in the order of files, not of rounds
    resumed, again = run_board(plan, 3, kill + 1, 0.2, Ledger(rows=dict(rows), table=copy.deepcopy(ledger.table)))
    assert resumed.table == whole.table
    assert resumed.rows.keys() == whole.rows.keys()
    assert not before & set(again)
    assert before | set(again) == set(ran)


def test_round_without_its_record_is_asked_again(plan: Plan, run_board: Any) -> None:
    whole, _ = run_board(plan)
    search = plan.searches()[0]
    table = {key: value for key, value in whole.table.items() if not (key[0] == search.id and key[1] == 1)}
    resumed, ran = run_board(plan, ledger=Ledger(rows=dict(whole.rows), table=table))
    assert resumed.table == whole.table
    assert ran == []


def test_finished_searches_hand_out_nothing(plan: Plan, run_board: Any) -> None:
    whole, _ = run_board(plan)
    board = Board(plan, whole, ask_optuna, lambda records: pytest.fail("nothing is left to record"))
    assert board.done
    assert board.next() is None


def test_longer_search_runs_the_difference(make_spec: Any, plan_of: Any, run_board: Any) -> None:
    """From 4 to 8 settings, with a round of 3 cut short in between."""
    short, _ = run_board(plan_of(wide_spec(make_spec, trials=4)))
    fresh, _ = run_board(plan_of(wide_spec(make_spec, trials=8)))
    before = dict(short.rows)
    extended, ran = run_board(plan_of(wide_spec(make_spec, trials=8)), 3, ledger=short)
    assert extended.table == fresh.table
    assert extended.rows.keys() == fresh.rows.keys()
    assert not before.keys() & set(ran)


def test_a_recorded_setting_stands_when_its_round_is_completed(
    make_spec: Any, plan_of: Any, run_board: Any, fake_row: Any
) -> None:
    """Another version of the sampler may ask for something else; what has run is kept."""
    short, _ = run_board(plan_of(wide_spec(make_spec, trials=2)))
    kept = dict(short.table)

    def ask_otherwise(search: Any, opened: Any) -> list[dict[str, Any]]:
        return [{**point, "lr": point["lr"] * 0.99} for point in ask_optuna(search, opened)]

    plan = plan_of(wide_spec(make_spec, trials=3))
    records: list[dict[str, Any]] = []
    board = Board(plan, short, ask_otherwise, records.extend)
    while (request := board.next()) is not None:
        board.finished(fake_row(request))
    assert board.done
    assert {key: short.table[key] for key in kept} == kept
    assert {r["trial_id"] for r in records} == {trial_id for trial_id, _ in short.table.values()}


def test_equal_settings_share_one_trial(make_spec: Any, plan_of: Any, run_board: Any) -> None:
    item = {"name": "finetune", "hparams": {"lr": 0.01}, "space": {"epochs": [1, 2]}}
    plan = plan_of(make_spec(methods=[item], search={"trials": 8, "round_size": 4, "sampler": "random"}))
    ledger, ran = run_board(plan, 3)
    assert len(ledger.table) == 8
    assert len(ran) == len(set(ran)) == 2
    assert all(tried.complete for tried in settings_of(plan.searches()[0], ledger))


def test_lines_with_the_same_trials_run_them_once(make_spec: Any, plan_of: Any, run_board: Any) -> None:
    """Two variants that search the same choices: the second waits for the first one's trials, and never hangs."""
    items = [
        {"name": "finetune", "variant": "a", "hparams": {"lr": 0.01}, "space": {"epochs": [1, 2]}},
        {"name": "finetune", "variant": "b", "hparams": {"lr": 0.01}, "space": {"epochs": [1, 2, 3]}},
    ]
    plan = plan_of(make_spec(methods=items, search={"trials": 9, "round_size": 3, "sampler": "random"}))
    alone, ran = run_board(plan)
    assert len(ran) == len(set(ran)) == 3
    for seed in range(20):
        together, _ = run_board(plan, 1 + seed % 4, seed)
        assert together.table == alone.table


@pytest.mark.parametrize("seed", range(25))
def test_never_hangs(make_spec: Any, plan_of: Any, run_board: Any, seed: int) -> None:
    """Random budgets, rounds, slots, failures, samplers and kills."""
    draw = random.Random(seed)
    spec = wide_spec(
        make_spec,
        trials=draw.randint(1, 9),
        round_size=draw.randint(1, 5),
        sampler=draw.choice(["tpe", "random", "grid", "qmc"]),
        train_seeds=draw.choice(["first", "all"]),
    )
    fails = draw.random()
    whole, ran = run_board(plan_of(spec), 1, 0, fails)
    ledger = Ledger()
    with pytest.raises(Killed):
        run_board(plan_of(spec), draw.randint(1, 9), seed, fails, ledger, draw.randrange(len(ran)))
    resumed, _ = run_board(plan_of(spec), draw.randint(1, 9), seed, fails, ledger)
    assert resumed.table == whole.table
    assert resumed.rows.keys() == whole.rows.keys()


def test_least_advanced_search_goes_first(plan: Plan, fake_row: Any) -> None:
    board = Board(plan, Ledger(), ask_optuna, lambda records: None)
    first = [board.next() for _ in range(3)]
    assert [request.spec.method for request in first if request] == ["finetune", "gradient_ascent", "deepclean"]


def test_total_is_the_budget(plan: Plan) -> None:
    assert Board(plan, Ledger(), ask_optuna, lambda records: None).total == 3 * 7 * 2
