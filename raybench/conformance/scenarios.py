"""What every scenario keeps to: a request of some samples, drawn from the generator it is given, nothing written."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from raybench.conformance.rules import Case, NotHere, digest, function_and_key_are_one_word, hold
from raybench.data import Request, Source
from raybench.registry import CLASS, SCENARIOS
from raybench.space import field_docs

# Parameters that the checks set where the defaults alone are no request.
EXAMPLES: dict[str, dict[str, Any]] = {
    "class": {"classes": [1]},
    "random": {"fraction": 0.2},
    "label_noise": {"fraction": 0.2},
    "overfit": {"fraction": 0.2},
    "repeated": {"fraction": 0.05},
    "memorization": {"fraction": 0.1},
}
CLASSES = 3
LABELS = np.arange(60) % CLASSES
FINE = np.arange(60) % (2 * CLASSES)  # two subclasses a class
SOURCE = Source("noise", np.arange(60), 60, FINE, ("a", "b", "c", "d", "e", "f"))
LISTED = "3\n14\n"  # what the file of a parameter ``file`` holds


def cases(name: str) -> Iterator[Case]:
    """The checks of one scenario, on 60 noise images of 3 classes."""
    yield Case(function_and_key_are_one_word, (SCENARIOS[name],))
    yield from (Case(check, (name,)) for check in (parameters_are_frozen_and_documented, request_is_sound))


def parameters_are_frozen_and_documented(name: str) -> None:
    """A frozen dataclass with a docstring under each field."""
    params: Any = SCENARIOS[name].params
    frozen = hasattr(params, "__dataclass_params__") and params.__dataclass_params__.frozen
    hold(frozen, f"params= must be a frozen dataclass, got {params}")
    bare = set(params.__dataclass_fields__) - set(field_docs(params))
    hold(not bare, f"no docstring under {', '.join(sorted(bare))}")


def request_is_sound(name: str) -> None:
    """Some samples, the same for the same generator, nothing else written or drawn."""
    entry = SCENARIOS[name]
    images = np.random.default_rng(0).integers(0, 256, (len(LABELS), 1, 8, 8), dtype=np.uint8)
    labels = LABELS.copy()
    images.flags.writeable = labels.flags.writeable = False  # a write raises
    state = digest(list(np.random.get_state(legacy=True))[1:])
    more = {"source": SOURCE} if "source" in inspect.signature(entry.fn).parameters else {}
    with tempfile.TemporaryDirectory() as folder:
        values = dict(EXAMPLES.get(name, {}))
        if "file" in getattr(entry.params, "__dataclass_fields__", {}):
            (Path(folder) / "rows.txt").write_text(LISTED)
            values["file"] = str(Path(folder) / "rows.txt")
        try:
            params = entry.params(**values)
        except (TypeError, ValueError) as error:
            raise NotHere(f"its parameters have no defaults that make a request: {error}") from error
        first, again = (
            entry.fn(images, labels, CLASSES, params, np.random.default_rng(5), **more) for _ in range(2)
        )  # a scenario that cannot work on such data says so, and is broken here
    hold(isinstance(first, Request), f"must return raybench.data.Request, got {type(first).__name__}")
    mask = isinstance(first.forget, np.ndarray) and first.forget.dtype == bool and first.forget.shape == labels.shape
    hold(mask, f"forget must be a bool mask [{len(labels)}]")
    hold(0 < int(first.forget.sum()) < len(labels), f"must forget some of {len(labels)}, got {int(first.forget.sum())}")
    hold(bool((first.forget == again.forget).all()), "two draws of one seed differ; use rng and nothing else")
    of_classes = bool(first.forget_classes) == (entry.kind == CLASS)
    hold(of_classes, f"kind is {entry.kind}, but forget_classes is {first.forget_classes}")
    for part, given in (("labels", labels), ("images", images)):
        changed, repeated = getattr(first, part), getattr(again, part)
        if changed is not None:
            hold(bool((changed == repeated).all()), f"two draws of one seed give other {part}")
            hold(bool((changed[~first.forget] == given[~first.forget]).all()), f"changes {part} outside the forget set")
    changes = first.labels is not None or first.images is not None
    hold(entry.corrupts(params) == changes, f"corrupts says {entry.corrupts(params)}, the request says {changes}")
    hold(entry.in_turn(params) == (len(first.given) > 1), f"in_turn is wrong for {len(first.given)} parts in given")
    for part in first.given:
        sound = part.dtype == bool and part.shape == labels.shape and part.any() and not (part & ~first.forget).any()
        hold(bool(sound), "each of given must be a bool mask of some of the samples in forget")
    hold(digest(list(np.random.get_state(legacy=True))[1:]) == state, "moves NumPy's global random state")
