"""``run_trial``: one method, one setting, one problem, one seed -> one row. Knows nothing of Ray.

Clock, memory, status, evaluation and provenance of every trial are here, on every path alike.
"""

from __future__ import annotations

import datetime
import io
import math
import os
import platform
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from raybench.appraisal import metric_context
from raybench.assignment import Assignment
from raybench.content_store import state_of
from raybench.data import Split
from raybench.device_memory import begin, context_bytes, most_reserved, reset_peak
from raybench.errors import StorageError
from raybench.evaluation import measure, outputs_of, pack, splits_for
from raybench.folder import open_folder
from raybench.gates import Evidence, judge_gates
from raybench.logs import log_event
from raybench.model_file import header_of
from raybench.observer import Observer
from raybench.outputs import Outputs
from raybench.passes import Clock, PassCounter, TimeLimit, warm_up
from raybench.probing import Prober
from raybench.problem import Problem
from raybench.reference_training import first_images
from raybench.references import Reference
from raybench.registry import METHODS, MethodEntry
from raybench.seeding import seeded_globals, to_json
from raybench.space import resolve
from raybench.spec import CLEAN, FINAL, ORACLE, REFERENCE, SEARCH, SHADOW, TrialSpec
from raybench.stopping import MAX_STEPS, TARGET
from raybench.task import Stop
from raybench.version import __version__
from raybench.watchdog import Watchdog
from raybench.workshop import Workshop, WrongDevice

MIN_TIME_LIMIT_S = 600.0
OUT_OF_MEMORY = "out of memory"  # how the reason of a failed row begins; a cluster tries such a trial once more, alone
RETRAIN_TIMES = 20.0  # the default limit is this many retrainings: a net against hangs


@dataclass
class _Run:
    """One trial under way."""

    spec: TrialSpec
    shop: Workshop
    row: dict[str, Any]

    @cached_property
    def problem(self) -> Problem:
        return self.shop.problem(self.spec.problem)

    @cached_property
    def original(self) -> Reference:
        spec = self.spec
        return self.shop.references.original(self.problem, spec.training, spec.original_index)

    @cached_property
    def retrained(self) -> Reference:
        return self.shop.references.retrained(self.problem, 0)

    @cached_property
    def looked_at(self) -> Mapping[str, Split]:
        """The splits that the result is evaluated on: all of them, or the part of a search."""
        splits = self.problem.splits
        part = self.problem.part(self.spec.samples) if self.spec.samples is not None else {}
        return {**splits, **{name: splits[name].subset(positions) for name, positions in part.items()}}


def run_trial(spec: TrialSpec, context: Mapping[str, Any], shop: Workshop) -> dict[str, Any]:
    """Run one trial and return its row (a plain dict in the schema of ``raybench.leaderboard``; ``series`` in it are
    the points of its curves, which ``ResultStore.append`` keeps in a table of their own).

    ``context`` are columns that the plan knows (experiment, variant, selected_on, ...). An exception of the method
    becomes a ``failed`` row with its reason; only ``WrongDevice``, ``UserError`` about the data (absent, or another
    checksum on this node), ``StorageError`` and interrupts leave this function.
    """
    started, clock0 = datetime.datetime.now(datetime.UTC), time.perf_counter()
    cuda = spec.problem.device_type == "cuda" and not context.get("skip")
    if not context.get("skip"):
        with threadpool_limits(spec.problem.threads):  # some scenarios compute much
            shop.problem(spec.problem)  # data that are not here are the run's trouble, not this trial's
    if cuda:
        begin()
    torch.set_num_threads(spec.problem.threads)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True  # a search is told these numbers, so they should come again
    row = _identity(spec, context, shop)
    row["started_at"] = started
    where = {key: row[key] for key in ("phase", "method", "train_seed", "attempt")}
    log_event("started", spec.trial_id, **where)
    run = _Run(spec, shop, row)
    try:
        # Torch's own pool is set above; without this, BLAS under NumPy and scikit-learn takes every core.
        with threadpool_limits(spec.problem.threads):
            if context.get("skip"):
                row |= {"status": "skipped", "reason": context["skip"]}
            elif METHODS[spec.method].reference:
                _reference(run)
            else:
                _method(run)
    except (WrongDevice, StorageError):
        raise
    except Exception as error:  # a bug in a trial is a row with its reason, never a lost run
        row |= {"status": "failed", "reason": reason_of(error)}
        log_event("raised", spec.trial_id, error=error)
    if cuda and row["status"] != "failed" and not row["cached"]:  # loading a model is not the training of it
        row["footprint"] = _footprint(spec, shop)
    row["wall_s"] = time.perf_counter() - clock0
    log_event("finished", spec.trial_id, status=row["status"], reason=row.get("reason"), wall_s=row["wall_s"])
    return row


def _footprint(spec: TrialSpec, shop: Workshop) -> int:
    """Bytes of the device that this process held at most; remembered for the trials that will share one."""
    alone = shop.placement.exclusive
    shop.footprints.note(spec, most_reserved(), context_bytes() if alone else None)
    known = shop.footprints.get(spec)
    return most_reserved() + (known.context if known is not None else 0)


def failed_row(spec: TrialSpec, context: Mapping[str, Any], shop: Workshop, reason: str) -> dict[str, Any]:
    """The row of a trial that no worker lived to finish, written by the driver in its place."""
    now = datetime.datetime.now(datetime.UTC)
    return _identity(spec, context, shop) | {"started_at": now, "status": "failed", "reason": reason}


def _identity(spec: TrialSpec, context: Mapping[str, Any], shop: Workshop) -> dict[str, Any]:
    problem, settings, placement = spec.problem, shop.settings, shop.placement
    cuda = problem.device_type == "cuda" and torch.cuda.is_available()
    row: dict[str, Any] = {
        "trial_id": spec.trial_id,
        "attempt": 0,
        "experiment": settings.experiment,
        "protocol": spec.protocol,
        "dataset": problem.dataset.label,
        "dataset_checksum": problem.checksum,
        "model": problem.model.label,
        "scenario": problem.scenario.label,
        "method": spec.method,
        "method_version": spec.method_version,
        "variant": spec.variant,
        "original_kind": spec.training.kind,
        "phase": spec.phase,
        "train_seed": problem.train_seed,
        "unlearn_seed": spec.unlearn_seed,
        "evaluate_seed": settings.evaluate_seed,
        "hparams": to_json(spec.hparams),
        "spec": to_json(spec.to_dict()),
        "status": "ok",
        "threads": problem.threads,
        "raybench_version": __version__,
        "torch_version": torch.__version__,
        "ray_version": placement.ray_version,
        "cuda_version": torch.version.cuda if cuda else None,
        "device_type": problem.device_type,
        "device_name": torch.cuda.get_device_name() if cuda else platform.machine(),
        "device_ids": placement.device_ids,
        "node": placement.node,
        "pid": os.getpid(),
        "git_commit": settings.git_commit,
        "exclusive": placement.exclusive,
        "cached": False,
    }
    return row | {key: value for key, value in context.items() if key != "skip"}


def _reference(run: _Run) -> None:
    """Rows of ``original`` (cost of doing nothing: zero), of retrained, clean or shadow model
    ``unlearn_seed``."""
    if run.spec.method == "original":
        reference = run.original
        cost = {"wall_s": 0.0, "cpu_s": 0.0, "forward": 0.0, "backward": 0.0}
    else:
        references = run.shop.references
        make = {SHADOW: references.shadow, CLEAN: references.clean}.get(run.spec.variant, references.retrained)
        reference = make(run.problem, run.spec.unlearn_seed)
        cost = {**reference.record, "wall_s": reference.record["train_s"]}
    run.row["cached"] = not run.shop.references.just_made(reference.key)
    if run.row["cached"]:  # the seconds were measured there
        run.row["device_name"] = reference.record["device_name"]
    run.row["artefact_bytes"] = reference.record["artefact_bytes"]
    _cost(run, cost, shared_s=0.0, peak=reference.record["peak_memory"])
    outputs = run.shop.references.outputs(run.problem, reference)
    _evaluate(run, outputs, reference.model)


def _method(run: _Run) -> None:
    """A search or final trial: warm up, run the method on the clock, look at what it returned."""
    spec, problem, shop = run.spec, run.problem, run.shop
    entry = METHODS[spec.method]
    original, retrained = run.original, run.retrained
    device = problem.splits["train"].images.device
    limit = shop.settings.time_limit_s or max(MIN_TIME_LIMIT_S, RETRAIN_TIMES * retrained.record["train_s"])
    clock = Clock(device, limit)
    passes = PassCounter(retrained.model, problem.facts.input_shape)  # an own training may make another network
    curves = shop.settings.curves and spec.phase == FINAL
    observer = Observer(spec.trial_id, problem.splits, clock.elapsed, problem.kind) if curves else None
    assignment = Assignment(spec, shop, problem, entry, original, retrained, clock, passes, observer)
    task = assignment.task(0, None)
    warm_up(retrained.model, first_images(problem))
    if device.type == "cuda":
        reset_peak()
    run.row["artefact_bytes"] = original.record["artefact_bytes"]
    hparams: Any = resolve(entry.hparams, spec.hparams, spec.method)
    result: Any = None
    clock.start()
    watchdog = Watchdog(clock, _giving_up(run, clock))
    try:
        with seeded_globals(spec.unlearn_seed + 1):  # dropout and initialisers can draw from the global state only
            for number in range(len(problem.requests)):
                if number:
                    with clock.paused():
                        task = assignment.task(number, result)
                try:
                    result = entry.fn(task, hparams)
                except Stop as stop:
                    result = stop.model
                    run.row["stop_reason"] = TARGET
        watchdog.close()
        clock.stop()
    except TimeLimit as limit_passed:
        run.row |= {"status": "timeout", "reason": str(limit_passed)}
    finally:
        watchdog.close()
        clock.stop()
        clock.note_peak()
        peak = clock.peak_memory if device.type == "cuda" else None
        cost = {"wall_s": clock.wall_s, "cpu_s": clock.cpu_s, "forward": passes.forward, "backward": passes.backward}
        _cost(run, cost, shared_s=clock.shared_s, peak=peak)
        if observer is not None:
            run.row["series"] = observer.points
    if run.row["status"] == "ok":
        if not callable(result):
            raise TypeError(f"method {spec.method} must return a model, got {type(result).__name__}")
        run.row["reported"] = to_json(task.reported.scalars) if task.reported.scalars else None
        run.row.setdefault("stop_reason", task.reported.stop_reason or (MAX_STEPS if spec.stop is not None else None))
        _keep(run, "reported", task.reported.tensors)
        _keep_images(run, task.reported.images)
        with passes.paused():
            _look(run, entry, result)
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _giving_up(run: _Run, clock: Clock) -> Callable[[str], None] | None:
    """What the watchdog does with a process that it cannot get back: the trial's row first, then its end."""
    end = run.shop.end_process
    if end is None:
        return None

    def give_up(reason: str) -> None:
        seconds = {"unlearn_s": clock.elapsed(), "wall_s": clock.elapsed()}
        row = {
            **run.row,
            **seconds,
            "status": "timeout",
            "reason": reason,
            "retrain_s": run.retrained.record["train_s"],
        }
        log_event("gave up", run.spec.trial_id, reason=reason)
        end(row)

    return give_up


def _look(run: _Run, entry: MethodEntry, result: Callable[[Tensor], Tensor]) -> None:
    """Status and metrics of what a method returned."""
    if isinstance(result, nn.Module):
        state = [*result.parameters(), *result.buffers()]
        if any(t.is_floating_point() and not bool(torch.isfinite(t).all()) for t in state):
            run.row |= {"status": "diverged", "reason": "the unlearned model has non-finite weights"}
            return
    outputs = outputs_of(result, run.looked_at, splits_for(run.spec.phase != SEARCH), run.problem.kind)
    # A class switched off by minus infinity is legal; a row without a finite maximum has no softmax.
    if any(not outputs[n].finite for n in outputs if outputs.has(n)):
        run.row |= {"status": "diverged", "reason": "the unlearned model has non-finite outputs"}
        return
    changed: bool | None = None
    if isinstance(result, nn.Module) and not entry.identity:
        before = run.original.model.state_dict()
        after = result.state_dict()
        changed = before.keys() != after.keys() or any(not torch.equal(before[n], after[n]) for n in before)
    _evaluate(run, outputs, result if isinstance(result, nn.Module) else None, changed)


def _evaluate(run: _Run, outputs: Outputs, model: nn.Module | None, changed: bool | None = None) -> None:
    spec, settings = run.spec, run.shop.settings
    retrained = run.shop.references.outputs(run.problem, run.retrained, spec.samples)
    prober = Prober(model, run.original, run.retrained, run.problem, run.shop)
    probes = prober if spec.phase in (FINAL, REFERENCE) else None
    context = metric_context(spec, run.shop, run.problem)
    columns, missing = measure(settings.metrics, outputs, retrained, context, probes)
    run.row |= columns
    run.row["metrics_s"] = prober.seconds
    _keep_images(run, prober.images)
    run.row["missing"] = to_json(missing) if missing else None
    run.row["forget_size"] = len(run.problem.splits["forget"])
    original = run.shop.references.outputs(run.problem, run.original, spec.samples)
    entry, classes = METHODS[spec.method], run.problem.facts.num_classes
    acts = not entry.reference and not entry.identity
    run.row["gates"] = to_json(judge_gates(Evidence(outputs, original, retrained, classes, acts, changed)))
    if spec.phase == ORACLE:
        if not METHODS[spec.method].reference:  # those of reference models are in the store
            _keep(run, "outputs", pack(outputs))
    elif spec.phase != SEARCH:
        if "outputs" in settings.keep:
            _keep(run, "outputs", pack(outputs))
        if "weights" in settings.keep and model is not None:
            _keep(run, "weights", state_of(model), header_of(run.problem, spec, settings.plugins))


def _cost(run: _Run, cost: Mapping[str, float], shared_s: float, peak: int | None) -> None:
    record = run.retrained.record
    unit = PassCounter(run.retrained.model, run.problem.facts.input_shape)
    flops = cost["forward"] * unit.unit_forward + cost["backward"] * unit.unit_backward
    whole = record["forward"] * unit.unit_forward + record["backward"] * unit.unit_backward
    run.row |= {
        "unlearn_s": cost["wall_s"],
        "cpu_s": cost["cpu_s"],
        "shared_s": shared_s,
        "retrain_s": record["train_s"],
        "speedup": record["train_s"] / cost["wall_s"] if cost["wall_s"] > 0 else None,
        "original_train_s": run.original.record["train_s"],
        "forward_passes": cost["forward"],
        "backward_passes": cost["backward"],
        "retrain_share": flops / whole if whole > 0 else None,
        "peak_memory": peak,
    }


def _keep(run: _Run, name: str, tensors: Mapping[str, Tensor], header: dict[str, str] | None = None) -> None:
    """Write tensors of this trial under ``artifacts/<trial id>/``."""
    if not tensors or run.shop.settings.artifacts is None or run.spec.phase == SEARCH:
        return
    kept = {k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}
    _write(run, f"{name}.safetensors", save(kept, metadata=header))


def _keep_images(run: _Run, images: Mapping[str, Tensor]) -> None:
    """Write image grids of this trial, one PNG per name."""
    if not images or run.shop.settings.artifacts is None or run.spec.phase == SEARCH:
        return
    from torchvision.utils import save_image  # slow to import, and few methods make images

    for name, pixels in images.items():
        columns = math.ceil(math.sqrt(len(pixels)))
        buffer = io.BytesIO()
        save_image(pixels.float().clamp(0.0, 1.0), buffer, format="png", nrow=columns, padding=1)
        _write(run, f"{name}.png", buffer.getvalue())


def _write(run: _Run, name: str, data: bytes) -> None:
    assert run.shop.settings.artifacts is not None
    open_folder(run.shop.settings.artifacts).put(f"{run.spec.trial_id}/{name}", data)


def out_of_memory(error: Exception) -> bool:
    """Whether a device or the host had no memory left. Torch's allocator for CPUs has no exception of its own."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: " in str(error)


def reason_of(error: Exception) -> str:
    """``Type: message (file:line)`` in one line, of the innermost frame that is not inside torch itself; memory that
    ran out begins with ``OUT_OF_MEMORY``."""
    if out_of_memory(error):
        return f"{OUT_OF_MEMORY}: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
    every = list(traceback.extract_tb(error.__traceback__))
    frames = [f for f in every if Path(torch.__file__).parent not in Path(f.filename).parents] or every
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:500]}{where}"
