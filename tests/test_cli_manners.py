"""How the command line speaks: help with examples, guesses, loudness, json, the question before long runs."""

from __future__ import annotations

import json
import os
import pty
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from raybench import confirm
from raybench.arguments import EXAMPLES_OF, make_parser
from raybench.cli import _COMMANDS
from raybench.run import Options


def test_every_command_has_examples_and_they_parse(cli: Any) -> None:
    assert set(EXAMPLES_OF) == set(_COMMANDS)
    parser = make_parser()
    for name, examples in EXAMPLES_OF.items():
        for example in examples:
            words = shlex.split(example)
            assert words[:2] == ["raybench", name]
            parser.parse_args(words[1:])
        said = cli(name, "--help")
        assert said.code == 0
        assert all(f"\n  {example}\n" in said.out for example in examples), said.out


def test_help_is_there_at_once() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "raybench", "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert all(re.search(rf"\n    {name}\s+\w", said) for name in _COMMANDS)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent < 0.5, "seconds of the processor, which do not depend on who else is at work"


@pytest.mark.parametrize(
    ("words", "guess"),
    [
        (("rnu", "quickstart"), "did you mean run?"),
        (("leaderbord", "x"), "did you mean leaderboard?"),
        (("run", "quickstart", "--qiuet"), "did you mean --quiet?"),
        (("list", "method"), "did you mean methods?"),
        (("new", "metod", "x"), "did you mean method?"),
    ],
)
def test_mistyped_words_are_guessed(words: tuple[str, ...], guess: str, cli: Any) -> None:
    said = cli(*words)
    assert said.code == 2
    assert guess in said.err
    assert said.err.count("\n") == 1


def test_verbose_tells_every_trial_and_json_is_for_programs(cli: Any, make_spec: Any) -> None:
    spec = make_spec(methods=[{"name": "finetune", "space": {"epochs": {"low": 1, "high": 2}}}])
    loud = cli("run", "{spec}", "--serial", "--results", "out", "--verbose", spec=spec)
    assert loud.code == 0, loud.err
    told = [line for line in loud.err.splitlines() if " seed 0: ok in " in line]
    again = cli("run", "{spec}", "--serial", "--results", "out", "--format", "json", spec=spec)
    record = json.loads(again.out)
    assert (record["ran"], record["bad"], record["exit_code"]) == (0, [], 0)
    assert len(told) == record["counted"]["ok"]
    assert Path(record["leaderboard"]).is_file()
    assert again.err == ""
    quiet = cli("run", "{spec}", "--serial", "--results", "out", "--verbose", "--quiet", spec=spec)
    assert quiet.code == 2
    assert "not allowed with" in quiet.err


def test_what_does_not_go_on_promises_nothing(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("raybench.doctor.examine", interrupt)
    said = cli("doctor")
    assert (said.code, said.err) == (130, "raybench: interrupted\n")


def test_the_doctor_for_programs(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raybench.doctor._ray", lambda address: "not started here")
    said = cli("doctor", "--format", "json")
    checks = {check["name"]: check for check in json.loads(said.out)}
    assert checks["python"]["ok"] is True
    assert said.code == int(any(check["ok"] is False for check in checks.values()))


class Terminal:
    """Standard input or error that says that it is a terminal, and what a person types."""

    def __init__(self, typed: str = "", terminal: bool = True) -> None:
        self.typed, self.terminal, self.shown = typed, terminal, ""

    def isatty(self) -> bool:
        return self.terminal

    def readline(self) -> str:
        return self.typed

    def write(self, text: str) -> int:
        self.shown += text
        return len(text)

    def flush(self) -> None: ...


@pytest.mark.parametrize(
    ("typed", "seconds", "options", "terminal", "goes_on", "asks"),
    [
        ("\n", 3000.0, Options(serial=True), True, True, True),
        ("y\n", 3000.0, Options(serial=True), True, True, True),
        ("n\n", 3000.0, Options(serial=True), True, False, True),
        ("n\n", 500.0, Options(serial=True), True, True, False),
        ("n\n", 3000.0, Options(slots=8), True, True, False),
        ("n\n", 3000.0, Options(slots=2), True, False, True),
        ("n\n", 3000.0, Options(serial=True, quiet=True), True, True, False),
        ("n\n", 3000.0, Options(serial=True), False, True, False),
    ],
)
def test_who_is_asked(typed, seconds, options, terminal, goes_on, asks, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = {"total": 9, "done": 0, "to_run": 9}
    report = {"experiment": "long", "lines": 3, "skipped_lines": 0, "stages": {"search": stage}, "device": "cpu",
              "estimate": {"seconds": seconds, "basis": "rows so far"}, "results": "r", "store": "s"}  # fmt: skip
    monkeypatch.setattr(confirm, "look_ahead", lambda *_: report)
    told = Terminal()
    monkeypatch.setattr(sys, "stdin", Terminal(typed, terminal))
    monkeypatch.setattr(sys, "stderr", told)
    assert confirm.confirmed("spec", (), options) is goes_on
    assert ("go on? [Y/n]" in told.shown) is asks
    assert ("device-minutes" in told.shown) is asks


def test_on_a_real_terminal_no_means_no(tmp_path: Path, make_spec: Any) -> None:
    problem = {"dataset": "digits", "models": [{"name": "mlp", "hidden": [512]}], "scenarios": ["class"]}
    spec = make_spec(problems=[problem], recipe={"epochs": 5000}, search={"trials": 50})
    (tmp_path / "long.yaml").write_text(yaml.safe_dump(spec))
    here, there = pty.openpty()
    command = [sys.executable, "-m", "raybench", "run", "long.yaml", "--serial", "--store", "store"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen(command, cwd=tmp_path, stdin=there, stderr=there, stdout=subprocess.PIPE, env=env) as run:
        os.close(there)
        os.write(here, b"n\n")
        shown = b""
        while b"nothing was started" not in shown:
            shown += os.read(here, 4096)
        assert run.wait(60) == 130
    os.close(here)
    assert b"go on? [Y/n]" in shown
    assert not list((tmp_path / "raybench-runs").glob("*/trials"))
