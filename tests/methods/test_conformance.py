"""What every method keeps to (``raybench.conformance``), over the registry: a new method is tested before its author
writes a test."""

import inspect

import pytest

from raybench.conformance import NotHere, cases
from raybench.registry import METHODS

NAMES = METHODS.names()
CASES = [(name, case) for name in NAMES for case in cases("methods", name)]


@pytest.mark.parametrize(("name", "case"), CASES, ids=[f"{name}: {case.rule}" for name, case in CASES])
def test_conformance(name, case):
    try:
        case.run()
    except NotHere as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("name", NAMES)
def test_file_is_named_after_the_key_and_short(name):
    """What is longer has mathematics or a loop in it that belongs to ``mechanisms``."""
    fn = METHODS[name].fn
    assert fn.__module__.rpartition(".")[2].rstrip("_") == name
    assert len(inspect.getsource(inspect.getmodule(fn)).splitlines()) <= 150
