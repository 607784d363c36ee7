"""``raybench again``: one trial once more, from its row alone, and whether the numbers are the same."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import yaml

from raybench.errors import UserError
from raybench.folder import open_folder
from raybench.registry import METHODS, METRICS
from raybench.run import Options, prepare
from raybench.show import Row, find_row, metrics_of_row
from raybench.spec import SEARCH, TrialSpec
from raybench.trial import run_trial
from raybench.workshop import Placement, Workshop, WrongDevice

CLOSE = 1e-3  # another processor or torch rounds otherwise, and an attack's ranks may turn; more is a difference


@dataclass(frozen=True)
class Difference:
    """One number of the row, then and now; None where there is none."""

    name: str
    before: float | None
    now: float | None

    @property
    def equal(self) -> bool:
        """To the bit."""
        return self.before == self.now

    @property
    def close(self) -> bool:
        """Equal, or as near as another machine's rounding."""
        if self.before is None or self.now is None:
            return self.equal
        return math.isclose(self.before, self.now, rel_tol=CLOSE, abs_tol=CLOSE)


@dataclass(frozen=True)
class Again:
    """What came of it. Seconds are told, not judged."""

    before: Row
    now: Row
    differences: list[Difference]  # of every metric, its retrained value and its gap, and of the sample passes

    @property
    def same(self) -> bool:
        """Whether status and all numbers came again."""
        return self.before["status"] == self.now["status"] and all(d.close for d in self.differences)


def run_again(results: str, prefix: str, options: Options, keep: tuple[str, ...] = ()) -> Again:
    """Run the trial that ``prefix`` names once more, in this process. Its row stays as it is.

    The problem, setting and seeds come from the row; metrics, plug-ins and limits from the folder's spec.yaml.
    Reference models come from the store where they are there. ``keep`` (outputs, weights) leaves these in the folder's
    ``artifacts/``.
    """
    row = find_row(results, prefix)
    if row["status"] == "skipped":
        raise UserError(f"trial {row['trial_id']} was skipped and has nothing to run: {row['reason']}")
    if keep and row["phase"] == SEARCH:
        raise UserError(f"only final and reference trials keep {' and '.join(keep)}, got {row['trial_id']} of a search")
    folder = open_folder(results)
    if not folder.has("spec.yaml"):
        raise UserError(f"again needs the spec.yaml that a run leaves in its results folder, got none in {results}")
    with folder.open("spec.yaml") as file:
        raw = yaml.safe_load(file.read())
    spec = TrialSpec.from_dict(row["spec"])
    prepared = prepare(raw, dataclasses.replace(options, results=results), [row["device_type"]], write=False)
    settings = dataclasses.replace(
        prepared.settings, keep=keep, artifacts=prepared.settings.artifacts if keep else None, use_once=False
    )
    shop = Workshop(settings, placement=Placement())
    if METHODS[spec.method].version != spec.method_version:
        raise UserError(
            f"trial {row['trial_id']} is of version {spec.method_version} of {spec.method}, this raybench has version "
            f"{METHODS[spec.method].version}; run it with the raybench of its row: {row['raybench_version']}"
        )
    try:
        made = run_trial(spec, {"experiment": row["experiment"]}, shop)
    except WrongDevice as error:
        raise UserError(f"trial {row['trial_id']} ran on {row['device_type']}, which this machine lacks") from error
    return Again(row, made, _differences(row, made))


def _differences(before: Row, now: dict[str, Any]) -> list[Difference]:
    """Searches of before left nothing out; what they leave out now is no difference."""
    left_out = {m.name for m in METRICS if m.fits} if before["phase"] == SEARCH else set()
    measured = [m for m in metrics_of_row(before) if m not in left_out]
    names = [c for m in measured for c in (m, f"{m}_retrained", f"{m}_gap")]
    names += ["forward_passes", "backward_passes"]
    pairs = [(name, before.get(name), now.get(name)) for name in names]
    return [Difference(name, a, b) for name, a, b in pairs if a is not None or b is not None]


def render_again(found: Again) -> str:
    """The verdict in one line, and the numbers that differ."""
    row, now = found.before, found.now
    text = [f"{row['method']} on {row['dataset']} / {row['model']} / {row['scenario']}, train seed {row['train_seed']}"]
    if now["status"] != row["status"]:
        text.append(f"status: {row['status']} then, {now['status']} now: {now.get('reason') or row['reason'] or ''}")
    for item in found.differences:
        if not item.equal:
            text.append(f"  {item.name:32} {item.before!s:>22} then  {item.now!s:>22} now")
    equal = sum(item.equal for item in found.differences)
    text.append(
        f"{equal} of {len(found.differences)} numbers are the same to the bit"
        + ("" if equal == len(found.differences) else f", the others to {CLOSE:g}" if found.same else "; some DIFFER")
    )
    if row["unlearn_s"] is not None and now.get("unlearn_s") is not None:
        text.append(
            f"unlearn_s: {row['unlearn_s']:.3g} then, {now['unlearn_s']:.3g} now (clocks differ from run to run)"
        )
    return "\n".join(text)
