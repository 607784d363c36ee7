"""How much of a GPU a kind of trial needs: measured, remembered in the store, and rounded up to a share that packs.

A footprint is what the whole process held while a trial was under way: the data of its problem, reference models, the
method, evaluation, and CUDA's own context. It is remembered by what decides it (dataset, model, method, sizes of
batches, precision) and is no part of any trial's identity: where a trial runs never changes its result.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from raybench.device_memory import CONTEXT_BYTES
from raybench.folder import open_folder
from raybench.seeding import content_hash
from raybench.spec import TrialSpec

KIND = "footprints"  # beside the models in the store
GRID = 16  # shares are sixteenths: exact in Ray's arithmetic, and no trial needs less of a device than CUDA's context
HEADROOM = 1.25  # another setting, or blocks that the allocator cannot fill, may need more than what was seen
STEP = 2**26  # CUDA's own part is remembered in steps: it differs a little from process to process
GROWTH = 1.5  # after a trial ran out of memory within its share


@dataclass(frozen=True)
class Footprint:
    """``reserved``: most bytes of torch's allocator. ``context``: bytes of CUDA itself beside it."""

    reserved: int
    context: int = CONTEXT_BYTES

    @property
    def total(self) -> int:
        """Bytes of the device that such a trial takes."""
        return self.reserved + self.context


def footprint_key(spec: TrialSpec) -> str:
    """Hash of what decides the memory of a trial."""
    problem = spec.problem
    recipe = {name: problem.recipe.get(name) for name in ("batch_size", "precision", "channels_last")}
    return content_hash(
        {
            "dataset": problem.checksum,
            "model": problem.network,
            "recipe": recipe,
            "method": [spec.method, spec.method_version, spec.training.kind],
            "batches": batch_sizes(spec.hparams),
        }
    )


def batch_sizes(hparams: Mapping[str, Any]) -> dict[str, int]:
    """The hyperparameters that say how many samples are on the device at once: ``batch_size``, ``noise_batch``, ...
    (``pseudo_batches`` counts steps)."""
    return {k: v for k, v in hparams.items() if isinstance(v, int) and ("batch_size" in k or k.endswith("_batch"))}


def share_of(footprint: Footprint, device_bytes: int) -> float:
    """The share of a device that holds a footprint with head-room: a multiple of 1/16, at most 1."""
    wanted = (HEADROOM * footprint.reserved + footprint.context) / device_bytes
    return min(1.0, max(1, math.ceil(GRID * wanted)) / GRID)


class Footprints:
    """The footprints in a store (a folder or URL). A damaged record is none: it is measured again."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._folder = open_folder(root)

    def get(self, spec: TrialSpec) -> Footprint | None:
        """What is known of trials such as ``spec``."""
        try:
            with self._folder.open(_place(spec)) as file:
                found = json.loads(file.read())
            return Footprint(int(found["reserved"]), int(found["context"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def note(self, spec: TrialSpec, reserved: int, context: int | None = None) -> None:
        """Remember a measurement: of ``reserved`` the largest. ``context`` is None where others shared the device."""
        known = self.get(spec)
        if context is None:
            context = known.context if known is not None else CONTEXT_BYTES
        most = Footprint(max(reserved, known.reserved if known else 0), -(-context // STEP) * STEP)
        if most != known:
            self._put(spec, most)

    def enlarge(self, spec: TrialSpec, share: float, device_bytes: int) -> None:
        """Remember that ``share`` of a device of ``device_bytes`` was too little."""
        known = self.get(spec) or Footprint(0)
        had = max(known.reserved, int(share * device_bytes) - known.context)
        self._put(spec, Footprint(int(GROWTH * had), known.context))

    def _put(self, spec: TrialSpec, footprint: Footprint) -> None:
        # What it is of stands beside it, for people: the key alone says nothing.
        of = {
            "dataset": spec.problem.dataset.label,
            "model": spec.problem.model.label,
            "method": spec.method,
            "batches": batch_sizes(spec.hparams),
        }
        self._folder.put(_place(spec), json.dumps({**asdict(footprint), **of}, sort_keys=True, indent=1).encode())


def _place(spec: TrialSpec) -> str:
    key = footprint_key(spec)
    return f"{KIND}/{key[:2]}/{key}/record.json"
