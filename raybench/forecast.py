"""``raybench plan``: what would run, what is there already, and about how long it takes. Trains nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from raybench.problem import build_model, load_data, split_validation
from raybench.run import Options, Prepared, cluster_devices, prepare
from raybench.seeding import seeded_globals
from raybench.spec import ProblemSpec
from raybench.spec_file import apply_settings, read_spec
from raybench.stages import count
from raybench.training import cross_entropy, make_recipe

TRIAL_SHARE = 0.3  # a method's trial as a share of a retraining, where no row tells better (an assumption, and said so)
PROBE_BATCHES = 3


def forecast(spec: str, settings: Sequence[str], options: Options, form: str) -> str:
    """The plan of a spec as a table or JSON."""
    report = look_ahead(spec, settings, options)
    return json.dumps(report, indent=1) if form == "json" else plan_table(report)


def look_ahead(spec: str, settings: Sequence[str], options: Options) -> dict[str, Any]:
    """The plan of a spec: trials per stage, and ``estimate``, ``seconds`` of one device with their basis."""
    raw = apply_settings(read_spec(spec), settings)
    prepared = prepare(raw, options, cluster_devices(raw, options), write=False)
    stages = count(prepared.plan, prepared.ledger)
    missing = sum(stage["to_run"] for stage in stages.values())
    estimate = estimate_s(prepared, stages) if missing else {"seconds": 0.0, "basis": "nothing to run"}
    return {
        "experiment": prepared.experiment.name,
        "results": prepared.results,
        "store": prepared.store,
        "device": " and ".join(prepared.plan.device_types),
        "stages": stages,
        "lines": len(prepared.plan.lines),
        "skipped_lines": sum(line.skip is not None for line in prepared.plan.lines),
        "estimate": estimate,
    }


def estimate_s(prepared: Prepared, stages: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """Device seconds still to spend. From the mean seconds of existing rows of a stage; else from a few timed steps
    of each model, its recipe, and the assumption that a trial costs ``TRIAL_SHARE`` of a retraining."""
    wall: dict[tuple[str, str], list[float]] = {}
    for row in prepared.ledger.rows.values():
        if row.get("wall_s") is not None and row["status"] != "skipped":
            wall.setdefault((row["phase"], row["device_type"]), []).append(row["wall_s"])
    devices = prepared.plan.device_types
    trainings: dict[str, list[float]] = {device: [] for device in devices}
    for problem in prepared.plan.problems:
        trainings[problem.device_type].append(_training_s(prepared, problem))
    training = {device: sum(times) / len(times) for device, times in trainings.items()}
    phases = {"references": "reference", "search": "search", "finals": "final", "oracles": "oracle"}
    shares = {"references": 1.0, "search": TRIAL_SHARE, "finals": TRIAL_SHARE, "oracles": 1.0}
    seconds, basis = 0.0, set()
    for stage, phase in phases.items():
        if not stages[stage]["to_run"]:
            continue
        unseen = [device for device in devices if (phase, device) not in wall]
        if unseen:  # a device type without rows is the one whose trials are missing
            each = sum(training[device] for device in unseen) / len(unseen) * shares[stage]
        else:
            seen = [wall[phase, device] for device in devices]
            each = sum(sum(times) / len(times) for times in seen) / len(seen)
        away = ", on this machine's CPU" if not all(map(_here, unseen)) else ""
        basis.add(f"timed steps{away}, a trial taken as {TRIAL_SHARE:g} of a retraining" if unseen else "rows so far")
        seconds += each * stages[stage]["to_run"]
    return {"seconds": seconds, "basis": "; ".join(sorted(basis))}


def _training_s(prepared: Prepared, problem: ProblemSpec) -> float:
    """Seconds of training one model by the recipe, from a few timed steps."""
    raw, _ = load_data(problem.dataset, prepared.settings.data_root, prepared.settings.download)
    recipe = make_recipe(problem.recipe)
    device = torch.device(problem.device_type if _here(problem.device_type) else "cpu")
    torch.set_num_threads(problem.threads)
    with seeded_globals(0):
        model = build_model(problem.model, raw.num_classes, raw.input_shape).to(device).train()
    images = torch.zeros((recipe.batch_size, *raw.input_shape), device=device)
    labels = torch.zeros(recipe.batch_size, dtype=torch.int64, device=device)
    times = []
    for _ in range(PROBE_BATCHES + 1):
        start = time.perf_counter()
        cross_entropy(model, (images, labels)).mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    samples = len(split_validation(raw.y_train, problem.validation, problem.split_seed)[0])
    return min(times[1:]) * recipe.epochs * samples / recipe.batch_size


def _here(device_type: str) -> bool:
    """Whether this machine has such a device; the cluster that the plan is for may have others."""
    return device_type == "cpu" or torch.cuda.is_available()


def plan_table(report: Mapping[str, Any]) -> str:
    """``look_ahead`` for people."""
    table = Table(box=None, pad_edge=False)
    for column in ("stage", "trials", "done", "to run"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for name, stage in report["stages"].items():
        if name == "oracles" and not stage["total"]:
            continue
        table.add_row(name, str(stage["total"]), str(stage["done"]), str(stage["to_run"]))
    console = Console(width=100, highlight=False)
    with console.capture() as capture:
        console.print(f"{report['experiment']}: {report['lines']} lines, {report['skipped_lines']} of them skipped")
        console.print(table)
    lines = [capture.get().rstrip()]
    if all(stage["to_run"] == 0 for stage in report["stages"].values()):
        lines.append("nothing to run: no reference model to train, no trial left")
    else:
        estimate = report["estimate"]
        seconds = estimate["seconds"]
        amount = f"{seconds / 3600:.1f} device-hours" if seconds >= 3600 else f"{seconds / 60:.1f} device-minutes"
        lines.append(f"about {amount} ({report['device']}; {estimate['basis']})")
    return "\n".join([*lines, f"results: {report['results']}", f"store:   {report['store']}"])
