"""Where things are: results, store, data, and the commit that ran."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from raybench.errors import UserError
from raybench.version import PACKAGE


def results_folder(name: str, given: str | None) -> Path:
    """``--results``, or ./raybench-runs/<experiment>. A relative folder inside a submitted job is refused: the job's
    working directory is a copy that is thrown away."""
    _refuse_url("--results", given)
    inside_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if inside_job and (given is None or not Path(given).is_absolute()):
        raise UserError(
            f"--results must be an absolute folder inside a submitted job, got {given or 'none'}; "
            "name one that every node sees"
        )
    return _folder("--results", given) if given else Path("raybench-runs", name).resolve()


def store_folder(given: str | None, results: Path, cluster: bool) -> Path:
    """``--store``, RAYBENCH_STORE, the user's cache folder; beside the results where a cluster is driven."""
    given = given or os.environ.get("RAYBENCH_STORE")
    _refuse_url("--store", given)
    if given:
        return _folder("--store", given)
    if cluster:
        return results.parent / ".raybench-store"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "raybench"


def data_root(given: str | None) -> str | None:
    """``--data``, or RAYBENCH_DATA."""
    given = given or os.environ.get("RAYBENCH_DATA")
    return str(_folder("--data", given)) if given else None


def _folder(option: str, given: str) -> Path:
    try:
        return Path(given).expanduser().resolve()
    except (OSError, RuntimeError) as error:  # a home folder that nobody has, links in a circle
        raise UserError(f"{option} must be a folder, got {given} ({error}); give another path") from error


def _refuse_url(option: str, given: str | None) -> None:
    if given is not None and "://" in given:
        raise UserError(
            f"{option} must be a folder that every node sees, got the URL {given}; mount it and name the mount"
        )


def git_commit() -> str:
    """Commit of the checkout that raybench runs from, with + when it had changes; empty outside a checkout."""
    where = PACKAGE

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=where, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if not commit or git("ls-files", "--error-unmatch", "__init__.py") is None:
        return ""
    return commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
