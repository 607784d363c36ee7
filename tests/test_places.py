"""Where results, store and data are, and which commit runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from raybench import places
from raybench.errors import UserError

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (JOB, "RAYBENCH_STORE", "RAYBENCH_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def test_results_default_to_the_name_of_the_experiment(tmp_path: Path) -> None:
    assert places.results_folder("tiny", None) == str(tmp_path / "raybench-runs" / "tiny")


def test_given_results_are_made_absolute(tmp_path: Path) -> None:
    assert places.results_folder("tiny", "out") == str(tmp_path / "out")
    assert places.results_folder("tiny", "~/out") == str(tmp_path / "home" / "out")


def test_inside_a_job_results_must_be_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(JOB, "{}")
    for given in (None, "out"):
        with pytest.raises(
            UserError, match=r"absolute folder or a URL inside a submitted job, got (none|out); name one"
        ):
            places.results_folder("tiny", given)
    assert places.results_folder("tiny", str(tmp_path / "out")) == str(tmp_path / "out")


def test_store_is_given_or_from_the_environment_or_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    results = str(tmp_path / "runs" / "out")
    assert places.store_folder(None, results, cluster=False) == str(tmp_path / "home" / ".cache" / "raybench")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert places.store_folder(None, results, cluster=False) == str(tmp_path / "cache" / "raybench")
    assert places.store_folder(None, results, cluster=True) == str(tmp_path / "runs" / ".raybench-store")
    monkeypatch.setenv("RAYBENCH_STORE", "env")
    assert places.store_folder(None, results, cluster=True) == str(tmp_path / "env")
    assert places.store_folder("given", results, cluster=True) == str(tmp_path / "given")


def test_data_is_given_or_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert places.data_root(None) is None
    monkeypatch.setenv("RAYBENCH_DATA", "env")
    assert places.data_root(None) == str(tmp_path / "env")
    assert places.data_root("given") == str(tmp_path / "given")


def test_urls_of_object_stores_stay_as_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(JOB, "{}")
    assert places.results_folder("tiny", "s3://bucket/run/") == "s3://bucket/run"
    assert places.store_folder("s3://bucket/store", "/x", cluster=False) == "s3://bucket/store"
    assert places.store_folder(None, "s3://bucket/a/run", cluster=True) == "s3://bucket/a/.raybench-store"
    assert places.store_folder(None, "s3://bucket", cluster=True) == "s3://bucket/.raybench-store"
    assert places.results_folder("tiny", f"file://{tmp_path}/x") == str(tmp_path / "x")


@pytest.mark.parametrize("given", ["sftp://host/x", "http://host/x", "s3://", "nosuch://x/y"])
def test_other_urls_are_refused(given: str) -> None:
    with pytest.raises(UserError, match=r"storage URL must be s3://bucket/prefix or gs://bucket/prefix, got .*mount"):
        places.results_folder("tiny", given)


def test_folder_that_cannot_be_named() -> None:
    with pytest.raises(UserError, match="--data must be a folder, got ~nobody-here/x"):
        places.data_root("~nobody-here/x")


def git(where: Path, *arguments: str) -> str:
    names = ["-c", "user.name=t", "-c", "user.email=t@t"]
    return subprocess.run(
        ["git", *names, *arguments], cwd=where, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_commit_of_the_checkout_and_a_mark_for_changes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "checkout" / "raybench"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(places, "PACKAGE", package)
    assert places.git_commit() == ""
    git(package.parent, "init", "-q")
    git(package.parent, "commit", "-q", "--allow-empty", "-m", "unrelated")
    assert places.git_commit() == ""  # installed inside somebody else's checkout
    git(package.parent, "add", ".")
    git(package.parent, "commit", "-q", "-m", "ours")
    commit = git(package.parent, "rev-parse", "HEAD")
    assert places.git_commit() == commit
    (package / "__init__.py").write_text("changed")
    assert places.git_commit() == commit + "+"
