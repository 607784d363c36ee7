"""A problem's network without memory: what its shapes say before anything runs (the ``skip`` of methods)."""

from __future__ import annotations

import torch
from torch import nn

from raybench.registry import MODELS
from raybench.seeding import seeded_globals
from raybench.task import Facts


def laid_out(facts: Facts) -> nn.Module | None:
    """The problem's network on the device ``meta``; None for a model that is not registered (somebody's own).

    ``facts.model`` is a label: the name, ``name:family``, and the options in brackets where there are some.
    """
    name = facts.model.partition("(")[0]
    if name not in MODELS:
        return None
    family = {"family": name.split(":", 1)[1]} if ":" in name else {}
    with torch.device("meta"), seeded_globals(0):
        model: nn.Module = MODELS[name].fn(facts.num_classes, facts.input_shape, **family, **facts.model_options)
    return model
