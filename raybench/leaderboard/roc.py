"""ROC curves of the loss attack, from the outputs that finals keep (``keep: [outputs]``), without importing torch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raybench.folder import Folder

GRID = np.unique(np.concatenate([np.geomspace(1e-3, 1.0, 61), np.linspace(0.0, 1.0, 101)]))  # false positive rates
Curve = NDArray[np.float64]


def losses(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Cross-entropy per sample in nats: ``logits`` [n, K], ``labels`` [n]."""
    wide = logits.astype(np.float64)
    top = wide.max(axis=1, keepdims=True)
    total = np.log(np.exp(wide - top).sum(axis=1)) + top[:, 0]
    return np.asarray(total - wide[np.arange(len(labels)), labels], dtype=np.float64)


def curve(members: NDArray[np.float64], non_members: NDArray[np.float64]) -> Curve:
    """True positive rate at each rate of ``GRID`` of "member if the loss is at most t", straight between thresholds."""
    from sklearn.metrics import roc_curve

    truth = np.concatenate([np.ones(len(members)), np.zeros(len(non_members))])
    rate, found, _ = roc_curve(truth, -np.concatenate([members, non_members]))
    return np.asarray(np.interp(GRID, rate, found), dtype=np.float64)


def curve_of(folder: Folder, name: str) -> Curve | None:
    """The curve of one kept file: the forget set against never-trained samples of the same classes; None where one of
    them is absent or has outputs that are not finite."""
    from safetensors.numpy import load

    with folder.open(name) as file:
        tensors = load(file.read())
    other = "test_forgotten" if "test_forgotten.labels" in tensors else "test"
    sides = []
    for split in ("forget", other):
        if f"{split}.logits" not in tensors:
            return None
        sides.append(losses(tensors[f"{split}.logits"], tensors[f"{split}.labels"]))
        if not len(sides[-1]) or not np.isfinite(sides[-1]).all():
            return None
    return curve(sides[0], sides[1])


def kept_outputs(folder: Folder) -> dict[str, str]:
    """Trial id -> file in the results folder, of the trials whose outputs are there."""
    names = [name for name in folder.files("artifacts") if name.endswith("/outputs.safetensors")]
    return {name.split("/")[-2]: name for name in names}


def mean_curves(rows: pd.DataFrame, folder: Folder, files: Mapping[str, str]) -> dict[str, tuple[Curve, int]]:
    """Line name (column ``line``) -> (mean curve over its trials, how many had one)."""
    found: dict[str, tuple[Curve, int]] = {}
    for name, group in rows.groupby("line", sort=True):
        curves = [curve_of(folder, files[i]) for i in group["trial_id"] if i in files]
        known = [c for c in curves if c is not None]
        if known:
            found[str(name)] = np.mean(known, axis=0), len(known)
    return found
