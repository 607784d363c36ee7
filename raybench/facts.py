"""What a run leaves beside its rows, so that its plan can be made again on a machine without its data: the spec as
it ran, and the facts of its datasets."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import yaml

from raybench.errors import UserError
from raybench.experiment import Experiment, make_experiment
from raybench.folder import Folder, open_folder
from raybench.plan import DataFacts, Plan
from raybench.spec import FILE, Choice
from raybench.spec_file import SPEC, decode_spec
from raybench.weights import OPTION as WEIGHTS

FACTS = "facts.json"


def keep_facts(results: str, plan: Plan) -> None:
    """Write both files of a results folder where they are not the same already."""
    folder, raw = open_folder(results), dict(plan.experiment.raw)
    paths = {}
    for given, found in zip(make_experiment(raw).cells, plan.experiment.cells, strict=True):
        if WEIGHTS in found.model.options:
            paths[str(given.model.options[WEIGHTS])] = found.model.options[WEIGHTS]
        if FILE in found.scenario.options:
            paths[str(given.scenario.options[FILE])] = found.scenario.options[FILE]
    facts = {
        "device_types": list(plan.device_types),
        "data": {label: dataclasses.asdict(facts) for label, facts in plan.data.items()},
        "paths": paths,
        "digests": dict(plan.digests),
    }
    _put(folder, SPEC, yaml.safe_dump(raw, sort_keys=False))
    _put(folder, FACTS, json.dumps(facts, indent=1))


def kept_spec(results: str) -> dict[str, Any]:
    """The spec of a results folder, as it ran; ``UserError`` where there is none."""
    return decode_spec(_get(results, SPEC), f"{results}/{SPEC}")


def kept_plan(results: str) -> Plan:
    """The plan of a results folder. ``UserError`` where a file is missing or damaged, or names a plug-in that this
    machine lacks."""
    raw, text = kept_spec(results), _get(results, FACTS)
    try:
        found: Mapping[str, Any] = json.loads(text)
        data = {label: _facts(plain) for label, plain in found["data"].items()}
        paths, digests = dict(found["paths"]), dict(found["digests"])
        device_types = [str(name) for name in found.get("device_types") or [found["device_type"]]]  # one, before
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{results}/{FACTS} must be as raybench wrote it, it is damaged; run the spec again") from error
    return Plan(_with_paths(make_experiment(raw), paths), data, device_types, digests)


def _with_paths(experiment: Experiment, paths: Mapping[str, str]) -> Experiment:
    """The files that models and scenarios name, as the run found them."""

    def found(choice: Choice, option: str) -> Choice:
        path = paths.get(str(choice.options.get(option)))
        return choice if path is None else Choice(choice.name, {**choice.options, option: path})

    cells = [
        dataclasses.replace(cell, model=found(cell.model, WEIGHTS), scenario=found(cell.scenario, FILE))
        for cell in experiment.cells
    ]
    return dataclasses.replace(experiment, cells=tuple(cells))


def _facts(plain: Mapping[str, Any]) -> DataFacts:
    channels, height, width = plain["input_shape"]
    return DataFacts(plain["checksum"], int(plain["num_classes"]), (channels, height, width))


def _get(results: str, name: str) -> bytes:
    try:
        with open_folder(results).open(name) as file:
            return file.read()
    except FileNotFoundError as error:
        raise UserError(f"a results folder must have a {name}, got {results}; check the path") from error


def _put(folder: Folder, name: str, text: str) -> None:
    try:
        with folder.open(name) as file:
            same = file.read() == text.encode()
    except FileNotFoundError:
        same = False
    if not same:
        folder.put(name, text.encode())
