"""The driver in this process, on one store of models per file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raybench.run import Options, run


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reference models of the tiny spec, trained once for this file."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(autouse=True)
def _store(shared_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYBENCH_STORE", str(shared_store))


@pytest.fixture
def go(tmp_path: Path, make_spec: Any) -> Any:
    """Run a spec into ``tmp_path/<results>``."""

    def call(results: str = "out", spec: dict[str, Any] | None = None, **options: Any) -> Any:
        given = Options(results=str(tmp_path / results), serial=True, quiet=True, **options)
        return run(spec if spec is not None else make_spec(), options=given)

    return call
