"""A network without memory, by the labels that people read."""

from __future__ import annotations

import torch

from raybench.mechanisms.laid_out import laid_out
from raybench.task import Facts


def facts(label: str, **options: object) -> Facts:
    return Facts("digits", label, 10, (1, 28, 28), (0,), "class", model_options=options)


def test_names_options_and_strangers() -> None:
    before = torch.get_rng_state()
    plain, narrow = laid_out(facts("resnet18")), laid_out(facts("resnet18(width=8)", width=8))
    assert plain is not None
    assert narrow is not None
    assert {p.device.type for p in plain.parameters()} == {"meta"}
    assert sum(p.numel() for p in narrow.parameters()) < sum(p.numel() for p in plain.parameters()) / 50
    assert laid_out(facts("somebody's own")) is None
    assert torch.equal(torch.get_rng_state(), before)
