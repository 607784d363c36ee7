"""Seeds and hashes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from raybench.seeding import (
    canonical,
    content_hash,
    derive_seed,
    numpy_generator,
    seeded_globals,
    to_json,
    torch_generator,
)


@dataclasses.dataclass(frozen=True)
class Pair:
    a: int
    b: tuple[float, ...]


def test_canonical_spells_equal_values_alike() -> None:
    assert canonical(Pair(1, (2.0, 3.5))) == {"a": 1, "b": [2.0, 3.5]}
    assert to_json({"b": 1, "a": {2, 1}}) == '{"a":[1,2],"b":1}'
    assert to_json(np.float64(0.1)) == to_json(0.1)
    assert to_json(np.int64(3)) == "3"
    assert to_json(-0.0) == to_json(0.0) == to_json(np.float64(-0.0)) == "0.0"
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})


@pytest.mark.parametrize(
    ("one", "other"),
    [([1, 2], [2, 1]), ({"a": 1}, {"a": 2}), ("1", 1), (1, 1.5), (True, False), (None, 0), (["ab", "c"], ["a", "bc"])],
)
def test_different_values_hash_and_seed_differently(one: object, other: object) -> None:
    assert content_hash(one) != content_hash(other)
    assert derive_seed(one) != derive_seed(other)


def test_hashes_and_seeds_do_not_depend_on_the_process() -> None:
    """String hashing is salted per process; nothing here may use it."""
    code = "from raybench.seeding import *; print(content_hash({'x': {'b', 'a'}}), derive_seed('s', 1, 0.5))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [content_hash({"x": {"b", "a"}}), str(derive_seed("s", 1, 0.5))]
    assert 0 <= derive_seed("s") < 2**63


def test_a_value_without_one_spelling_is_refused() -> None:
    with pytest.raises(TypeError):
        to_json({"x": torch.zeros(2)})


def test_generators_repeat_and_differ() -> None:
    def draw(*parts: object) -> list[float]:
        return [*torch.rand(3, generator=torch_generator(*parts)).tolist(), *numpy_generator(*parts).random(3)]

    assert draw("a", 0) == draw("a", 0)
    assert draw("a", 0) != draw("a", 1)


def test_seeded_globals_puts_the_state_back() -> None:
    before = torch.get_rng_state()
    with seeded_globals(5):
        one = torch.rand(3)
    with contextlib.suppress(KeyError), seeded_globals(5):
        assert torch.equal(torch.rand(3), one)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)


def test_to_json_is_json() -> None:
    value = {"x": [1, 2.5, None, True, "é"]}
    assert json.loads(to_json(value)) == value
