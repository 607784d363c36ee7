"""``raybench export``: the unlearned model of a trial as one safetensors file."""

from __future__ import annotations

import json
import os
from pathlib import Path

from raybench.errors import UserError
from raybench.folder import open_folder
from raybench.model_file import HEADER
from raybench.show import command, find_row


def export_model(results: str, prefix: str, out: Path) -> str:
    """Write the kept weights of a trial to ``out``, whole or not at all; gives the trial's id.

    Weights that nobody kept are a ``UserError`` that says which command keeps them.
    """
    row = find_row(results, prefix)
    name = f"artifacts/{row['trial_id']}/weights.safetensors"
    folder = open_folder(results)
    again = f"{command(row, results)} --keep weights"
    if not folder.has(name):
        raise UserError(
            f"the weights of a trial are there only where a run kept them, got none of {row['trial_id']}; "
            f"make them again with: {again} (or for all finals, in the spec: keep: [outputs, weights])"
        )
    with folder.open(name) as file:
        data = file.read()
    if HEADER not in _metadata(data):
        raise UserError(f"{results}/{name} has no header, an older raybench kept it; make it again with: {again}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = out.with_name(f".{out.name}.{os.getpid()}")
        scratch.write_bytes(data)
        os.replace(scratch, out)
    except OSError as error:
        raise UserError(f"the model must go to a file that can be written, got {out} ({error.strerror})") from error
    return str(row["trial_id"])


def _metadata(data: bytes) -> dict[str, str]:
    """The text in the header of safetensors bytes: eight bytes of length, then JSON."""
    size = int.from_bytes(data[:8], "little")
    found: dict[str, str] = json.loads(data[8 : 8 + size]).get("__metadata__") or {}
    return found
