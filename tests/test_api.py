"""The public surface: explicit, documented, with examples that run."""

from __future__ import annotations

import doctest
import importlib
import inspect
from pathlib import Path

import pytest

import raybench
from docs.generate import PUBLIC, public

PACKAGE = Path(raybench.__file__).parent
NAMES = list(public())
# Where a docstring must say what an array looks like: these words are of tensors.
TENSORS = ("Tensor", "ndarray", "Split", "Outputs")
SHAPES = ("[n", "[N", "[K", "[16", "[|D_f|", "logits", "shape", "per channel", "images", "sample", "split", "model")


def test_the_page_shows_what_the_package_exports() -> None:
    assert {*PUBLIC["raybench"], "__version__"} == set(raybench.__all__)


@pytest.mark.parametrize(("module", "name", "found"), NAMES, ids=[f"{module}.{name}" for module, name, _ in NAMES])
def test_every_public_name_is_documented(module: str, name: str, found: object) -> None:
    doc = inspect.getdoc(found) or ""
    summary = doc.split("\n")[0]
    assert len(summary) > 10, f"{module}.{name} has no docstring"
    assert not doc.startswith(f"{name}("), "a dataclass without a docstring shows its signature"
    assert summary[-1] in ".:;,`)" or len(doc.splitlines()) > 1
    returned = str(inspect.signature(found).return_annotation) if inspect.isfunction(found) else ""
    if any(word in returned for word in TENSORS) and "None" not in returned:
        assert any(word in doc for word in SHAPES), f"{module}.{name} returns {returned} and does not say its shape"


def test_functions_of_the_package_name_their_parameters_and_errors() -> None:
    for module, name, found in NAMES:
        if not inspect.isfunction(found) or name.split(".")[-1].startswith("_") or module != "raybench":
            continue
        for parameter in inspect.signature(found).parameters.values():
            assert parameter.name in (inspect.getdoc(found) or ""), f"{name}: {parameter.name}"
        assert "Raises:\n    raybench.errors.UserError" in (inspect.getdoc(found) or ""), f"{name} says no errors"


EXAMPLES = [path for path in sorted(PACKAGE.rglob("*.py")) if ">>>" in path.read_text()]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_examples_run(path: Path) -> None:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    result = doctest.testmod(importlib.import_module(".".join(part for part in parts if part != "__init__")))
    assert result.attempted > 0
    assert result.failed == 0
