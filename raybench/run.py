"""``raybench run``: spec -> plan -> executor -> rows -> leaderboard. The same for a laptop, a cluster and resume."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from raybench.admission import check_devices, check_names, check_objective, check_protocol
from raybench.board import Board
from raybench.content_store import ContentStore
from raybench.errors import UserError
from raybench.experiment import Experiment, make_experiment, with_files
from raybench.facts import keep_facts
from raybench.folder import is_url
from raybench.leaderboard.lock import DriverLock
from raybench.leaderboard.query import write_leaderboard
from raybench.leaderboard.schema import MetricInfo
from raybench.leaderboard.store import ResultStore
from raybench.ledger import Ledger, Row, read_ledger
from raybench.logs import FOLDER as LOGS
from raybench.measuring import pool_of
from raybench.places import data_root, git_commit, results_folder, store_folder
from raybench.plan import DataFacts, Plan
from raybench.problem import check_problem, load_data
from raybench.progress import Reporter, bad_line
from raybench.references import KIND as REFERENCES
from raybench.registry import METRICS
from raybench.selection import settings_of
from raybench.serial import IDLE, Executor, SerialExecutor
from raybench.spec_file import apply_settings, read_spec
from raybench.workshop import Settings

Redo = Callable[[ResultStore], Mapping[str, int]]
BOTH = ("cuda", "cpu")  # in the order in which a stage hands out the work: there are fewer GPUs than cores


@dataclass(frozen=True)
class Options:
    """How to run, as opposed to what (the spec)."""

    results: str | None = None
    store: str | None = None
    data: str | None = None
    download: bool = False
    serial: bool = False
    address: str | None = None
    slots: int | None = None
    use_once: bool = True
    quiet: bool = False
    verbose: bool = False  # a line for every trial that ends


@dataclass
class Outcome:
    """What a run left: where (a path or URL), how many trials ran now, and the rows that people must hear of."""

    results: str
    ran: int = 0
    trained: int = 0
    measured: int = 0  # rows that got metrics from the oracle pool, or metrics added to the spec later
    bad: list[str] = field(default_factory=list)
    counted: dict[str, int] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 done; 1 a trial failed, or a final is neither ok nor skipped."""
        return 1 if self.bad else 0


@dataclass
class Prepared:
    """An experiment bound to its data and folders, nothing run yet."""

    experiment: Experiment
    plan: Plan
    ledger: Ledger
    results: str
    store: str
    settings: Settings
    metrics: list[MetricInfo]
    notes: tuple[str, ...] = ()


def prepare(
    raw: Mapping[str, Any], options: Options, device_types: Sequence[str] | None = None, *, write: bool = True
) -> Prepared:
    """Validate everything that can be wrong before anything is trained."""
    root = data_root(options.data)
    experiment, digests = with_files(make_experiment(raw), root)
    results = results_folder(experiment.name, options.results)
    store = store_folder(options.store, results, cluster=options.address is not None)
    data: dict[str, DataFacts] = {}
    for cell in experiment.cells:
        raw_data, checksum = load_data(cell.dataset, root, options.download)
        data[cell.dataset.label] = DataFacts(checksum, raw_data.num_classes, raw_data.input_shape)
    plan = Plan(experiment, data, device_types or resolve_devices(experiment), digests)
    notes: list[str] = []
    if experiment.each_device and len(plan.device_types) < 2:
        notes.append("devices: each finds no CUDA device: all runs on CPU; the same command with one adds the rest")
    for problem in plan.problems:
        notes += check_problem(problem, load_data(problem.dataset, root, options.download)[0])
    metrics = metric_infos(experiment.metrics)
    if write:
        rows = ResultStore.open_for_writing(results, metrics)
        ContentStore(store).probe()
    else:
        rows = ResultStore(results, metrics)
    settings = Settings(
        experiment=experiment.name,
        store=store,
        metrics=experiment.metrics,
        artifacts=f"{results}/artifacts",
        logs=None if is_url(results) else f"{results}/{LOGS}",
        data_root=root,
        download=options.download,
        plugins=experiment.plugins,
        evaluate_seed=experiment.evaluate_seed,
        oracles=experiment.oracles,
        shadows=experiment.shadows,
        keep=experiment.keep,
        use_once=options.use_once,
        curves=experiment.curves,
        time_limit_s=experiment.time_limit_s,
        git_commit=git_commit(),
    )
    check_protocol(rows, results)
    if write:
        check_devices(rows, results, plan)
    ledger = read_ledger(rows)
    check_objective(ledger, experiment.search.metric, results)
    if write:
        check_names(ledger, plan, results)
    return Prepared(experiment, plan, ledger, results, store, settings, metrics, tuple(dict.fromkeys(notes)))


def run(
    spec: str | Mapping[str, Any],
    *,
    options: Options | None = None,
    settings: Sequence[str] = (),
    reporter: Reporter | None = None,
    redo: Redo | None = None,
) -> Outcome:
    """Run (or resume, or extend) an experiment.

    ``spec``: a shipped name, a YAML path, or plain values. ``redo``: called with the store
    once no other driver runs, gives trial id -> attempt number of the trials whose row does not count any more
    (``raybench retry``). Bad input is a ``UserError`` before anything is trained.
    """
    options = options or Options()
    reporter = reporter or Reporter(quiet=options.quiet, verbose=options.verbose)
    raw = apply_settings(spec if isinstance(spec, Mapping) else read_spec(spec), settings)
    session: Any = None
    device_types = None
    try:
        if options.address is not None and not options.serial:
            session, device_types = _connect(make_experiment(raw), options)
        prepared = prepare(raw, options, device_types)
        for note in prepared.notes:
            reporter.say(note)
        with DriverLock(prepared.results, on_wait=reporter.say) as lock:
            keep_facts(prepared.results, prepared.plan)
            return _drive(prepared, options, reporter, session, lock, redo)
    finally:
        if session is not None:
            session.close()


def _drive(
    prepared: Prepared, options: Options, reporter: Reporter, session: Any, lock: DriverLock, redo: Redo | None
) -> Outcome:
    """The stages: references, searches, finals, oracles, metrics of rows; then one file and the leaderboard."""
    plan, outcome = prepared.plan, Outcome(prepared.results)
    store = ResultStore.open_for_writing(prepared.results, prepared.metrics)
    attempts = redo(store) if redo is not None else {}
    ledger = read_ledger(store)  # again, now that nobody else drives
    ledger.attempts.update(attempts)
    for trial_id in attempts:
        ledger.rows.pop(trial_id, None)
    starter = _Starter(prepared, options, store, session, reporter)
    lock.doing = lambda: {**reporter.doing(), **starter.load()}
    models = ContentStore(prepared.store)
    known = models.keys(REFERENCES)
    try:
        references = plan.references()
        missing = ledger.missing(references)
        unique = len({r.spec.trial_id for r in references})
        with reporter.stage("references", unique, unique - len(missing)) as advance:
            if missing:
                starter.get().run_fixed(missing, _taking(ledger, outcome, lock, advance))
        searched = _trials_of_searches(plan, ledger)
        board = Board(plan, ledger, lambda s, opened: starter.get().ask(s, opened), lambda r: starter.get().record(r))
        with reporter.stage("search", board.total, searched) as advance:
            if not board.done:
                starter.get().run_searches(board, _taking(ledger, outcome, lock, advance))
        finals = plan.finals(ledger)
        missing = ledger.missing(finals)
        with reporter.stage("finals", plan.count_finals(), plan.count_finals() - len(missing)) as advance:
            if missing:
                starter.get().run_fixed(missing, _taking(ledger, outcome, lock, advance))
        oracles = plan.oracles(ledger)
        missing = ledger.missing(oracles)
        with reporter.stage("oracles", len(oracles), len(oracles) - len(missing)) as advance:
            if missing:
                starter.get().run_fixed(missing, _taking(ledger, outcome, lock, advance))
        rows = plan.measurements(ledger, already(store, prepared, retried=bool(attempts)))
        with reporter.stage("metrics", len(rows)) as advance:
            if rows:
                starter.get().run_fixed(rows, _measured(outcome, lock, advance))
    finally:
        starter.close()
    outcome.trained = len(models.keys(REFERENCES) - known)
    store = ResultStore.open_for_writing(prepared.results, prepared.metrics)
    lock.check()
    store.compact()
    lock.check()
    write_leaderboard(prepared.results, plan.wanted(ledger))
    _judge(outcome, plan, ledger, {r.spec.trial_id for r in (*references, *finals, *oracles)})
    return outcome


class _Starter:
    """Starts the executor at the first trial that needs one: a finished experiment starts nothing."""

    def __init__(
        self, prepared: Prepared, options: Options, store: ResultStore, session: Any, reporter: Reporter
    ) -> None:
        self._prepared, self._options, self._store = prepared, options, store
        self._session, self._reporter = session, reporter
        self._executor: Executor | None = None
        self._mine: Any = None  # a session that was started here

    def get(self) -> Executor:
        if self._executor is None:
            self._executor = self._start()
        return self._executor

    def load(self) -> dict[str, int]:
        """For ``raybench status``; asked from the heartbeat's thread."""
        return asdict(IDLE if self._executor is None else self._executor.load())

    def close(self) -> None:
        if self._executor is not None:
            self._executor.close()
        if self._mine is not None:
            self._mine.close()

    def _start(self) -> Executor:
        prepared, options = self._prepared, self._options
        if options.serial:
            cuda = "cuda" in prepared.plan.device_types
            return SerialExecutor(
                self._store, prepared.settings, share=prepared.experiment.resources["gpu"] if cuda else 1.0
            )
        from raybench.cluster.scheduler import RayExecutor
        from raybench.cluster.session import Session

        if self._session is None:
            self._reporter.say("starting Ray on this machine")
            self._session = Session.start(slots=options.slots, resources=prepared.experiment.resources)
            self._mine = self._session
        executor = RayExecutor(
            results=prepared.results,
            metrics=prepared.metrics,
            settings=prepared.settings,
            resources=prepared.experiment.resources,
            session=self._session,
            exclusive=prepared.experiment.exclusive,
            device_types=prepared.plan.device_types,
            measured=prepared.experiment.measured,
        )
        if executor.note:
            self._reporter.say(executor.note)
        return executor


def _taking(ledger: Ledger, outcome: Outcome, lock: DriverLock, advance: Any) -> Any:
    def finished(row: Row) -> None:
        lock.check()
        ledger.rows[row["trial_id"]] = row
        outcome.ran += 1
        advance(row)

    return finished


def _measured(outcome: Outcome, lock: DriverLock, advance: Any) -> Any:
    def finished(receipt: Row) -> None:
        lock.check()
        outcome.measured += 1
        advance(receipt)

    return finished


def already(store: ResultStore, prepared: Prepared, retried: bool = False) -> Callable[[str, str], bool]:
    """Whether a metric of a trial is known: in its current version, evaluate seed and size of the oracle pool.
    ``retried``: trials were run once more, so what the pool could not say before is asked again."""
    known, settings = store.measured(), prepared.settings

    def done(trial_id: str, name: str) -> bool:
        entry, found = METRICS[name], known.get(trial_id)
        where = (name, entry.version, settings.evaluate_seed, pool_of(entry, settings))
        return found is not None and found.has(*where, number=retried and bool(entry.pool))

    return done


def _trials_of_searches(plan: Plan, ledger: Ledger) -> int:
    ids = {search.id for search in plan.searches()}
    return sum(key[0] in ids and trial_id in ledger.rows for key, (trial_id, _) in ledger.table.items())


def _judge(outcome: Outcome, plan: Plan, ledger: Ledger, fixed: set[str]) -> None:
    """List what a person must hear of: failed trials, finals and references that are neither ok nor skipped.

    Only rows that this spec asks for: a folder may hold those of an earlier version of it, or of rounds that were
    asked again.
    """
    searches = plan.searches()
    wanted = fixed | {trial_id for s in searches for found in settings_of(s, ledger) for trial_id in found.trial_ids}
    for trial_id, row in sorted(ledger.rows.items()):
        if trial_id not in wanted:
            continue
        status = row["status"]
        outcome.counted[status] = outcome.counted.get(status, 0) + 1
        bad_final = trial_id in fixed and status not in ("ok", "skipped")
        if status == "failed" or bad_final:
            outcome.bad.append(bad_line(row))


def metric_infos(names: Sequence[str]) -> list[MetricInfo]:
    """What the leaderboard must know of metrics."""
    return [
        MetricInfo(m.name, m.version, m.unit, m.direction, asdict(m.attack) if m.attack else None)
        for m in (METRICS[n] for n in names)
    ]


def resolve_devices(experiment: Experiment) -> tuple[str, ...]:
    """The device types of a run on this machine alone."""
    if experiment.each_device:
        return BOTH if torch.cuda.is_available() else ("cpu",)
    if experiment.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda needs a CUDA device, this machine has none; use device: auto or cpu")
    if experiment.device == "auto":
        # Only a trial that asks for a share of a GPU gets one: the same rule as on a cluster, and in every process.
        return ("cuda" if experiment.resources["gpu"] > 0 and torch.cuda.is_available() else "cpu",)
    return (experiment.device,)


def cluster_devices(raw: Mapping[str, Any], options: Options) -> tuple[str, ...] | None:
    """The device types that ``options.address`` would give this spec; None without an address."""
    if options.address is None:
        return None
    session, device_types = _connect(make_experiment(raw), options)
    session.close()
    return device_types


def _connect(experiment: Experiment, options: Options) -> tuple[Any, tuple[str, ...]]:
    """Connect to the cluster first: the device type of ``device: auto`` depends on what it has."""
    from raybench.cluster.session import Session

    session = Session.connect(options.address or "auto", options.slots)
    found = session.device_type(experiment.device, experiment.resources)
    return session, BOTH if experiment.each_device and found == "cuda" else (found,)
