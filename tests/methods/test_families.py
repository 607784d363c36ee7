"""Every method on every family of networks runs or says why not: convolutions without batch norm, and attention.

The conformance suite has convolutions with and without batch norm and dense layers; here are the layers that need
other mathematics: layer norm, attention, learned tokens, depthwise convolution, GELU. ``tests/test_compatibility.py``
has a quick look at the same in every test run.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from raybench.registry import CLASS, METHODS, SAMPLE
from raybench.space import resolve
from raybench.task import Facts
from raybench.testing import make_task, run_method

SHAPE = (1, 28, 28)
SMALL = {
    "vit_tiny": (("width", 8), ("depth", 2), ("heads", 2), ("patch", 7)),
    "convnext_t": (("width", 4), ("depths", (1, 1)), ("patch", 4)),
    "swin_t": (("width", 32), ("depths", (2, 1)), ("patch", 4)),
}
RUNS_NOT = {"afim", "erm_ktp"}  # the methods that need ReLUs, or channels


def facts_of(model: str, kind: str) -> Facts:
    classes = (0,) if kind == CLASS else ()
    return Facts("digits", model, 10, SHAPE, classes, kind, model_options=dict(SMALL[model]))


@pytest.mark.slow
@pytest.mark.parametrize("model", SMALL)
@pytest.mark.parametrize("name", METHODS.names())
def test_runs_or_says_why_not(name, model):
    entry = METHODS[name]
    kind = CLASS if CLASS in entry.scope else SAMPLE
    reason = entry.skip(facts_of(model, kind), resolve(entry.hparams, entry.tiny, name)) if entry.skip else None
    if reason:
        assert name in RUNS_NOT, reason
        pytest.skip(reason)
    task = make_task(name, model=model, samples=120, model_options=SMALL[model])
    before = {key: value.shape for key, value in task.model.state_dict().items()}
    result = run_method(name, task)
    with torch.no_grad():
        logits = result(torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (4, 10)
    assert bool(torch.isfinite(logits).all())
    if not entry.predictor:
        assert isinstance(result, nn.Module)
        assert {key: value.shape for key, value in result.state_dict().items()} == before


def test_afim_in_closed_form_needs_no_relu():
    entry = METHODS["afim"]
    assert "no nn.ReLU" in entry.skip(facts_of("vit_tiny", CLASS), resolve(entry.hparams, {"variant": "A"}, "afim"))
    assert entry.skip(facts_of("vit_tiny", CLASS), resolve(entry.hparams, {"variant": "C"}, "afim")) is None
    run_method("afim", make_task("afim", model="vit_tiny", samples=120, model_options=SMALL["vit_tiny"]), variant="C")
