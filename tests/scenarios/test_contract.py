"""What every scenario keeps to (``raybench.conformance.scenarios``), whatever its name."""

from __future__ import annotations

import pytest

from raybench.conformance import cases
from raybench.registry import SCENARIOS

CASES = [(name, case) for name in SCENARIOS.names() for case in cases("scenarios", name)]


@pytest.mark.parametrize(("name", "case"), CASES, ids=[f"{name}: {case.rule}" for name, case in CASES])
def test_conformance(name, case):
    case.run()


@pytest.mark.parametrize("entry", list(SCENARIOS), ids=lambda entry: entry.name)
def test_file_is_named_after_the_key(entry):
    assert entry.fn.__module__.rsplit(".", 1)[1] == entry.fn.__name__
