"""Where things are: results, store, data, and the commit that ran."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from raybench.errors import UserError
from raybench.folder import is_url, open_folder
from raybench.version import PACKAGE


def results_folder(name: str, given: str | None) -> str:
    """``--results`` (an absolute path, or a URL), or ./raybench-runs/<experiment>. A relative folder inside a submitted
    job is refused: the job's working directory is a copy that is thrown away."""
    inside_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if inside_job and (given is None or not (is_url(given) or Path(given).is_absolute())):
        raise UserError(
            f"--results must be an absolute folder or a URL inside a submitted job, got {given or 'none'}; "
            "name one that every node sees"
        )
    return _place("--results", given) if given else str(Path("raybench-runs", name).resolve())


def store_folder(given: str | None, results: str, cluster: bool) -> str:
    """``--store``, RAYBENCH_STORE, the user's cache folder; beside the results where a cluster is driven."""
    given = given or os.environ.get("RAYBENCH_STORE")
    if given:
        return _place("--store", given)
    if cluster:
        scheme, sign, path = results.rpartition("://")
        beside = path.rpartition("/")[0] or path  # the results may be a whole bucket
        return f"{scheme}{sign}{beside}/.raybench-store"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return str(cache / "raybench")


def data_root(given: str | None) -> str | None:
    """``--data``, or RAYBENCH_DATA."""
    given = given or os.environ.get("RAYBENCH_DATA")
    return str(_folder("--data", given)) if given else None


def _folder(option: str, given: str) -> Path:
    try:
        return Path(given).expanduser().resolve()
    except (OSError, RuntimeError) as error:  # a home folder that nobody has, links in a circle
        raise UserError(f"{option} must be a folder, got {given} ({error}); give another path") from error


def _place(option: str, given: str) -> str:
    """A path made absolute; a URL that can be opened here, as it is."""
    if given.startswith("file://"):
        given = given.removeprefix("file://")
    return str(open_folder(given)) if is_url(given) else str(_folder(option, given))


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
