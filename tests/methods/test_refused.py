"""Settings that mean nothing are refused in one line, before anything runs, not run through."""

from __future__ import annotations

import math
from typing import Any

import pytest

from raybench.errors import UserError
from raybench.registry import METHODS
from raybench.space import resolve

AT_LEAST, ABOVE = "must be at least", "must be above 0"


@pytest.mark.parametrize(
    ("method", "values", "message"),
    [
        ("amun", {"batch_size": 0}, AT_LEAST),
        ("bad_teacher", {"temperature": 0.0}, ABOVE),
        ("bad_teacher", {"temperature": -1.0}, ABOVE),
        ("boundary_shrink", {"eps": -0.1}, AT_LEAST),
        ("boundary_shrink", {"batch_size": 0}, AT_LEAST),
        ("cf_k", {"pull": -0.1}, AT_LEAST),
        ("cf_k", {"k": -1}, AT_LEAST),
        ("delete", {"clip_norm": -1.0}, ABOVE),
        ("erm_ktp", {"tolerance": -0.1}, AT_LEAST),
        ("eu_k", {"pull": -0.1}, AT_LEAST),
        ("fisher_forgetting", {"alpha": -1.0}, AT_LEAST),
        ("fisher_forgetting", {"samples": -400}, AT_LEAST),
        ("fisher_masking", {"fisher_batch_size": 0}, AT_LEAST),
        ("fisher_masking", {"fisher_samples": -400}, AT_LEAST),
        ("influence", {"alpha": -1.0}, AT_LEAST),
        ("influence", {"damping": 0.0}, ABOVE),
        ("influence", {"samples": 0}, AT_LEAST),
        ("lcodec", {"noise": -0.1}, AT_LEAST),
        ("lcodec", {"val_gap_skip": -0.1}, AT_LEAST),
        ("lwsf", {"lambda_ewc": -1.0}, AT_LEAST),
        ("lwsf", {"lambda_delete": -1.0}, AT_LEAST),
        ("msg", {"slowdown": -0.1}, AT_LEAST),
        ("ntk_forgetting", {"ridge": 0.0}, ABOVE),
        ("ntk_forgetting", {"noise": -1.0}, AT_LEAST),
        ("salun", {"alpha": -1.0}, AT_LEAST),
        ("salun", {"batch_size": 0}, AT_LEAST),
        ("scrub", {"temperature": 0.0}, ABOVE),
        ("scrub", {"temperature": math.nan}, ABOVE),
        ("scrub", {"clip_norm": 0.0}, ABOVE),
        ("scrub", {"alpha": -1.0}, AT_LEAST),
        ("scrub", {"gamma": -1.0}, AT_LEAST),
        ("scrub", {"decay": -0.1}, AT_LEAST),
        ("scrub", {"forget_batch_size": -4}, AT_LEAST),
        ("scrub", {"epochs": 0, "rewind": True}, AT_LEAST),
        ("sfr_on", {"clip_norm": -1.0}, ABOVE),
        ("sfr_on", {"ascent": -1.0}, AT_LEAST),
        ("sfr_on", {"adaptivity": -0.5}, AT_LEAST),
        ("sfr_on", {"loss_floor": -1e-4}, AT_LEAST),
        ("sfr_on", {"threshold": -1.0}, AT_LEAST),
        ("sfr_on", {"batch_size": 0}, AT_LEAST),
        ("unsir", {"penalty": -0.1}, AT_LEAST),
        ("unsir", {"noise_lr": -0.1}, AT_LEAST),
        ("unsir", {"noise_used": 0}, AT_LEAST),
        ("unsir", {"noise_used": -3}, AT_LEAST),
        ("unsir", {"impair_epochs": -1}, AT_LEAST),
    ],
)
def test_meaningless_settings_are_refused(method: str, values: dict[str, Any], message: str) -> None:
    name = next(iter(values))
    with pytest.raises(UserError, match=f"^{method}: {name} {message}.*, got [^\n]*$"):
        resolve(METHODS[method].hparams, values, method)
