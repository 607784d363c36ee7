"""What a run leaves holds no pickle and no secret, lies in its own two folders, and names code only by import."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from safetensors import safe_open

import raybench

SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIASECRETKEYID12345",
    "AWS_SECRET_ACCESS_KEY": "secret/access+key/of/nobody",
    "AWS_SESSION_TOKEN": "session-token-of-nobody",
    "RAY_AUTH_TOKEN": "ray-token-of-nobody",
}


def _parquet(file: Path) -> str:
    return pd.read_parquet(file).to_csv()  # as text, because pages are compressed


def _safetensors(file: Path) -> str:
    with safe_open(file, framework="pt") as opened:
        return str(opened.metadata())


def _json(file: Path) -> str:
    json.loads(file.read_text())
    return ""


# What each kind of file must be; opening it so fails for everything else, a pickle included.
KINDS: dict[str, Callable[[Path], str]] = {
    ".parquet": _parquet,
    ".safetensors": _safetensors,
    ".json": _json,
    ".yaml": lambda file: file.read_text(),
    ".jsonl": lambda file: str([json.loads(line) for line in file.read_text().splitlines()]),
}  # fmt: skip


def test_no_pickle_no_secret_and_nothing_elsewhere(
    cli: Any, make_spec: Any, flaky: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    flaky("always")  # rows with reasons too
    spec = make_spec(methods=["finetune", "flaky"], plugins=["flaky_plugin"], keep=["outputs", "weights"])
    there = {path.name for path in tmp_path.iterdir()}
    said = cli("run", "{spec}", "--serial", "--results", "out", "--store", "store", spec=spec)
    assert said.code == 1
    assert {path.name for path in tmp_path.iterdir()} - there - {"__pycache__"} == {"spec.yaml", "out", "store"}
    files = [path for top in ("out", "store") for path in (tmp_path / top).rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files if path.name != "guard"}
    assert set(KINDS) == kinds
    texts = [said.out, said.err]
    for file in files:
        data = file.read_bytes()
        assert not data.startswith((b"\x80", b"PK\x03\x04")), file  # a pickle, or torch's archive of pickles
        if file.name == "guard":
            assert data == b""
        else:
            texts += [data.decode("latin-1"), KINDS[file.suffix](file)]
    for value in SECRETS.values():
        assert not any(value in text for text in texts)


def test_the_code_loads_no_pickle() -> None:
    """Except CIFAR's own after their checksum; torch.load and numpy.load read plain arrays only; YAML by our loader."""
    refused = []
    for file in Path(raybench.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call):
                continue
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            plain = {
                "torch.load": given.get("weights_only") == "True",
                "np.load": given.get("allow_pickle") == "False",
                "yaml.load": given.get("Loader") == "_Loader",
            }
            called = ast.unparse(node.func)
            unsafe = called.split(".")[0] in ("pickle", "joblib", "shelve", "dill", "eval", "exec")
            if unsafe or called == "torch.save" or not plain.get(called, True):
                refused.append(f"{file.name}: {called}")
    assert refused == ["cifar20.py: pickle.load"]
