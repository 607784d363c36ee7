"""Specs that people or accidents could write: never a traceback, always exit code 2 and one line, nothing written."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

BASE = (
    "name: x\nproblems: [{dataset: digits, models: [mlp], scenarios: [{class: {classes: [0]}}]}]\nmethods: [finetune]\n"
)
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)

# Text of a spec -> words of the line that it must give.
TEXTS: dict[str, tuple[str | bytes, tuple[str, ...]]] = {
    "empty": ("", ("must be a mapping", "nothing")),
    "only a comment": ("# nothing\n", ("must be a mapping", "nothing")),
    "only a word": ("quickstart", ("must be a mapping", "str")),
    "a number": ("3", ("must be a mapping", "int")),
    "a list": ("- a\n- b\n", ("must be a mapping", "list")),
    "two documents": ("name: x\n---\nname: y\n", ("valid YAML",)),
    "a tab": (BASE + "\tseeds: 1\n", ("valid YAML", "line 4")),
    "an open bracket": (BASE + "seeds: {train: [0\n", ("valid YAML", "line")),
    "an open quote": (BASE + "description: 'x\n", ("valid YAML", "line")),
    "a key twice": (BASE + "name: y\n", ("'name' stands twice", "line 4")),
    "a key twice inside": (BASE + "search: {trials: 1, trials: 2}\n", ("'trials' stands twice",)),
    "an unknown alias": (BASE + "recipe: *none\n", ("valid YAML", "none")),
    "a list as key": (BASE + "? [a, b]\n: 1\n", ("valid YAML",)),
    "a mapping as key": (BASE + "? {a: b}\n: 1\n", ("valid YAML",)),
    "a number as key": (BASE + "3: 1\n", ("'3'",)),
    "null as key": (BASE + "~: 1\n", ("None",)),
    "a Python object": (BASE + "recipe: !!python/object/apply:os.system ['touch owned']\n", ("valid YAML",)),
    "a Python name": (BASE + "recipe: !!python/name:os.system\n", ("valid YAML",)),
    "a tag of nobody": (BASE + "recipe: !mine {a: 1}\n", ("valid YAML", "!mine")),
    "binary data": (BASE + "description: !!binary aGVsbG8=\n", ("description must be text", "bytes")),
    "a set": (BASE + "recipe: !!set {a, b}\n", ("recipe must be",)),
    "a date": (BASE + "description: 2024-01-01\n", ("description must be text", "date")),
    "a date that is none": (BASE + "description: 2024-13-45\n", ("valid YAML",)),
    "not a number": (BASE + "validation: .nan\n", ("validation must be a finite number",)),
    "infinity": (BASE + "time_limit: .inf\n", ("time_limit must be a finite number",)),
    "infinity far in": (BASE + "recipe: {lr: -.inf}\n", ("recipe.lr must be a finite number",)),
    "a million digits": (BASE + f"gold_seeds: {'9' * 1_000_000}\n", ("valid YAML",)),
    "a thousand digits": (BASE + f"gold_seeds: {'9' * 1_000}\n", ("gold_seeds must be",)),
    "a bomb of aliases": (BASE + BOMB, ("a spec must",)),
    "a bomb inside": (BASE + "recipe:\n" + "".join(f"  {line}\n" for line in BOMB.splitlines()), ("a spec must",)),
    "an alias of itself": (BASE + "recipe: &r {again: *r}\n", ("nest deeper than 20",)),
    "a list of itself": (BASE + "plugins: &p [*p]\n", ("nest deeper than 20",)),
    "deep lists": (BASE + f"plugins: {'[' * 100}{']' * 100}\n", ("nest deeper than 20",)),
    "deeper lists": (BASE + f"plugins: {'[' * 5000}{']' * 5000}\n", ("valid YAML", "deep")),
    "merge of a list": (BASE + "<<: [1, 2]\n", ("valid YAML",)),
    "UTF-16": (BASE.encode("utf-16"), ("UTF-8",)),
    "bytes of nothing": (b"\xff\xfe\x00\x01" * 10, ("UTF-8",)),
    "a zero byte": (b"name: x\x00y\n", ("valid YAML",)),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), ("UTF-8",)),
    "a control character": (BASE + "description: \x07\n", ("valid YAML",)),
    "a name of another script": (BASE.replace("name: x", "name: опыт"), ("name must be letters",)),
    "a name right to left": (BASE.replace("name: x", 'name: "a\\u202Eb"'), ("name must be letters",)),
    "a name of two lines": (BASE.replace("name: x", 'name: "a\\nb"'), ("name must be letters",)),
    "a name with a line end": (BASE.replace("name: x", 'name: "a\\n"'), ("name must be letters",)),
    "a name with a slash": (BASE.replace("name: x", "name: a/b"), ("name must be letters",)),
    "a name two levels up": (BASE.replace("name: x", "name: ../../x"), ("name must be letters",)),
    "a name of dots": (BASE.replace("name: x", "name: .."), ("name must be letters",)),
    "an absolute name": (BASE.replace("name: x", "name: /tmp/x"), ("name must be letters",)),
    "a name of a thousand letters": (BASE.replace("name: x", f"name: {'x' * 1000}"), ("name must",)),
    "an empty name": (BASE.replace("name: x", "name: ''"), ("name must be letters",)),
    "a plugin by its file": (BASE + "plugins: [./mine.py]\n", ("plugins", "./mine.py")),
    "a plugin by an absolute file": (BASE + "plugins: [/tmp/mine.py]\n", ("plugins", "/tmp/mine.py")),
    "a plugin two levels up": (BASE + "plugins: [../../mine]\n", ("plugins", "../../mine")),
    "a plugin from the net": (BASE + "plugins: ['https://host/mine.py']\n", ("plugins", "https://host/mine.py")),
    "a plugin with a backslash": (BASE + "plugins: ['mine\\\\x']\n", ("plugins",)),
    "a plugin with a zero byte": (BASE + 'plugins: ["mi\\0ne"]\n', ("plugins",)),
    "a plugin of another script": (BASE + "plugins: [мой]\n", ("plugins", "мой")),
    "a variant of two lines": (BASE.replace("[finetune]", '[{name: finetune, variant: "a\\nb"}]'), ("variant",)),
    "a data file out of reach": (
        BASE.replace("dataset: digits", "dataset: {name: npz, path: /etc/passwd}"),
        ("/etc/passwd",),
    ),
    "a data file that is a device": (
        BASE.replace("dataset: digits", "dataset: {name: npz, path: /dev/null}"),
        ("/dev/null",),
    ),
    "a name with a surrogate": (BASE.replace("name: x", 'name: "\\ud800"'), ("name",)),
    "a description with a surrogate": (BASE + 'description: "\\ud800"\n', ("",)),
    "a method with a surrogate": (BASE.replace("[finetune]", '["\\ud800"]'), ("method",)),
}  # fmt: skip

JUNK: tuple[Any, ...] = (
    None, True, -1, 0, 2**80, 1e308, -1e-308, math.nan, "", " ", "../../etc/passwd", "x" * 5000, "опыт", "a\nb",
    "\x1b[31m", [], [[]], [None], {}, {"a": {"b": [1]}}, {"name": None}, {"": ""},
)  # fmt: skip


@pytest.fixture
def said(cli: Any, tmp_path: Path) -> Any:
    """Run the command line on the bytes of a spec; the folder must be as it was afterwards."""

    def call(data: bytes, command: str) -> Any:
        (tmp_path / "spec.yaml").write_bytes(data)
        options = ("--serial", "--quiet") if command == "run" else ()
        done = cli(command, "spec.yaml", "--results", "out", "--store", "store", *options)
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {"spec.yaml"}, left
        return done

    return call


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_is_refused_in_one_line(said: Any, name: str) -> None:
    text, words = TEXTS[name]
    done = said(text if isinstance(text, bytes) else text.encode(), "run")
    assert done.code == 2
    assert done.out == ""
    assert done.err.count("\n") == 1, done.err
    assert len(done.err) < 2000
    for word in words:
        assert word in done.err


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all that is in a spec, the spec itself first."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], junk: Any) -> Any:
    if not path:
        return junk
    whole = node = copy.deepcopy(value)
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = junk
    return whole


def test_junk_in_every_place_is_refused_in_one_line_or_makes_sense(said: Any, make_spec: Any) -> None:
    spec = make_spec(
        methods=[
            {"name": "finetune", "space": {"epochs": {"low": 1, "high": 2}}, "hparams": {"lr": 0.01}},
            {"name": "mnemonic", "training": [{"t_mix": 0.1}], "sweep": {"lambda1": [0.1, 0.2]}},
        ],
        seeds={"train": [0], "unlearn": [0], "evaluate": 0, "split": 0, "draw": 0},
        search={"trials": 2, "round_size": 2, "sampler": "tpe", "train_seeds": "first", "select": ["distance"]},
        resources={"cpu": 1, "gpu": 0.0},
        recipe={"epochs": 2, "lr": 0.1},
        plugins=["json"],
        keep=["outputs"],
        time_limit=60,
    )
    refused = 0
    every = list(itertools.product(list(places(spec)), JUNK))
    for path, junk in every[::3]:  # 3 and the number of kinds have no divisor in common: all kinds, in all places
        text = yaml.safe_dump(replaced(spec, path, junk), allow_unicode=True)
        done = said(text.encode(), "plan")
        at = (path, junk, done.err)
        assert done.code in (0, 2), at
        assert done.err.count("\n") == (done.code == 2), at
        assert "Traceback" not in done.err, at
        refused += done.code == 2
    assert refused >= 300
