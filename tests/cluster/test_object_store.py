"""A local Ray whose workers keep references, rows and artifacts in a bucket."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

import raybench
from tests.s3 import SECRET


def test_run_and_resume(s3: Any, ray_home: Any, make_spec: Any, tmp_path: Path) -> None:
    methods = [{"name": "finetune", "hparams": {"lr": 0.01}, "space": {"epochs": {"low": 1, "high": 2}}}]
    spec = make_spec(methods=methods, gold_seeds=1, search={"trials": 2, "round_size": 2})
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    places = ["--results", "s3://bench/run", "--store", "s3://bench/store"]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "raybench", "run", "spec.yaml", *places, *options]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )

    done = run("--slots", "2")
    assert done.returncode == 0, done.stderr
    rows = raybench.load_trials("s3://bench/run")
    assert set(rows["status"]) == {"ok"}
    assert rows["ray_version"].notna().all()
    assert {"store", "run"} == {key.split("/")[0] for key in s3.objects("bench")}
    assert any(key.startswith("run/artifacts/") for key in s3.objects("bench"))
    again = run("--serial", "--quiet")
    assert "0 trials run now (0 reference models trained)" in again.stdout
    assert SECRET not in done.stdout + done.stderr + again.stdout + again.stderr
    assert not any(SECRET.encode() in data for data in s3.objects("bench").values())
