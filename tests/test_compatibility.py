"""Every method with every kind of scenario and every family of networks, in a covering array of tiny trials: each one
is ok or skipped with a reason. The full product is marked slow."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from docs.compatibility import FAMILIES, PAGE, RAN, SCENES, Cell, array, bench, covering, own_methods, page
from raybench.registry import SCENARIOS


@pytest.fixture(scope="module")
def product():
    with bench() as (requests, run):
        yield requests, run


def judged(results):
    return {cell: result for cell, result in results.items() if result.status != RAN}


def hold(results):
    """ok, or skipped with a reason: anything else fails, by name."""
    bad = {
        " x ".join(cell): result
        for cell, result in judged(results).items()
        if result.status != "skipped" or not result.reason
    }
    assert not bad


def test_every_pair_meets_where_it_can_run(product):
    requests, _ = product
    names = [[entry.name for entry in own_methods()], list(SCENES), list(FAMILIES)]
    assert sorted(requests) == sorted(Cell(*cell) for cell in itertools.product(*names))
    runs = {cell for cell, request in requests.items() if "skip" not in request.context}
    chosen = array(requests)
    assert len(set(chosen)) == len(chosen) < len(requests) / 4
    assert chosen == array(requests)
    for pair in (pair for cell in requests for pair in cell.pairs):
        mine = [cell for cell in chosen if pair in cell.pairs]
        assert mine, pair
        assert runs.isdisjoint(cell for cell in requests if pair in cell.pairs) or runs & set(mine), pair


def test_the_array_of_a_small_product_is_as_small_as_can_be():
    """Two values each: four rows are the least, one per pair of the first two (Cohen et al. 1997)."""
    cells = [Cell(*cell) for cell in itertools.product("ab", "cd", "ef")]
    assert len(covering(cells, lambda cell: True)) == 4
    chosen = covering(cells, lambda cell: cell[:2] != ("a", "c"))
    shown = Counter(cell[:2] for cell in chosen)
    assert set(shown) == set(itertools.product("ab", "cd"))
    assert {cell[1:] for cell in chosen if cell[:2] != ("a", "c")} == set(itertools.product("cd", "ef"))


def test_the_page_names_every_method_scenario_and_family():
    text = PAGE.read_text()
    tables = [line for line in text.splitlines() if line.startswith("| ")]
    assert {choice.name for choice in SCENES.values()} == set(SCENARIOS.names())
    for name in (entry.name for entry in own_methods()):
        assert sum(line.startswith(f"| {name} |") for line in tables) == 2, f"{name}: python docs/compatibility.py"
    for names in (SCENES, FAMILIES):
        assert "| method | " + " | ".join(names) + " |" in tables


@pytest.mark.timeout(1200)  # a minute alone
def test_trials_of_the_array_are_ok_or_say_why_not_as_the_page_does(product):
    requests, run = product
    results = run(array(requests))
    hold(results)
    assert page(results) == PAGE.read_text(), "the page is not what python docs/compatibility.py writes"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("family", FAMILIES)
def test_full_product(product, family):
    """A cell runs where its method runs with its scenario and with its family."""
    requests, run = product
    results = run([cell for cell in requests if cell.family == family])
    hold(results)
    assert len(results) == len(own_methods()) * len(SCENES)
