"""A run as a job of a cluster: submitted once however often it is asked for, followed by polling, with its exit code.

The submission id is a hash of the spec and of where its results go. Asking again while the job runs follows it; after
it failed or was stopped, starts it again, which resumes; after it succeeded, does nothing. Logs and status are polled,
because Ray's log streams may end before their job does.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from raybench.errors import UserError
from raybench.folder import is_url
from raybench.seeding import content_hash
from raybench.spec_file import apply_settings, read_spec

POLL_S = 2.0
PATIENCE_S = 60.0  # without an answer of the job server, which may be starting or restarting
DONE = ("SUCCEEDED", "FAILED", "STOPPED")


class Client(Protocol):
    """What is used of ``ray.job_submission.JobSubmissionClient``."""

    def submit_job(self, *, entrypoint: str, submission_id: str, runtime_env: dict[str, Any]) -> str: ...
    def delete_job(self, job_id: str) -> bool: ...
    def list_jobs(self) -> list[Any]: ...
    def get_job_info(self, job_id: str) -> Any: ...
    def get_job_logs(self, job_id: str) -> str: ...


def connect(server: str | None) -> Client:
    """A client of the job server at ``server`` (default: RAY_API_SERVER_ADDRESS); ``UserError`` where none answers."""
    if (Path.home() / ".ray" / "auth_token").is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray's client does not look for the token by itself
    from ray.job_submission import JobSubmissionClient

    try:
        client: Client = JobSubmissionClient(server)
        client.list_jobs()
    except (ConnectionError, RuntimeError) as error:
        where = server or os.environ.get("RAY_API_SERVER_ADDRESS", "127.0.0.1:8265")
        raise UserError(
            f"--server must be a Ray job server that takes your token, got {where} ({_line(error)}); start the "
            "cluster, open the tunnel (ray dashboard cluster.yaml), and have the cluster's token in ~/.ray/auth_token"
        ) from error
    return client


def submission_id(spec: str, settings: Sequence[str], results: str) -> str:
    """The id of the job that runs this spec into these results."""
    raw = apply_settings(read_spec(spec), settings)
    return f"raybench-{raw.get('name', 'run')}-{content_hash([raw, results], 12)}"


def entrypoint(spec: str, settings: Sequence[str], results: str, store: str | None) -> list[str]:
    """The command of the job. ``UserError`` unless its places mean the same on every node."""
    for option, place in (("results", results), ("store", store)):
        if place is not None and not is_url(place) and not os.path.isabs(place):
            raise UserError(
                f"--{option} must be an absolute path that all nodes see, or a URL, got {place}; a job's own folder is "
                "thrown away"
            )
    command = ["python", "-m", "raybench", "run", spec, "--address", "auto", "--results", results]
    command += ["--store", store] if store is not None else []
    for setting in settings:
        command += ["--set", setting]
    return command


def submit(client: Client, job: str, command: str, folder: str, again: bool = False) -> str:
    """Have the job run; returns what was done: ``submitted``, ``running`` or ``done``. ``again`` starts one that has
    succeeded anew."""
    status = _status(client, job)
    if status == "SUCCEEDED" and not again:
        return "done"
    if status is not None and status not in DONE:
        return "running"
    if status is not None:
        client.delete_job(job)

    def start() -> str:
        return client.submit_job(entrypoint=command, submission_id=job, runtime_env={"working_dir": folder})

    _patiently(start, "the job is not submitted; mend that and submit it again")
    return "submitted"


def follow(client: Client, job: str, write: Callable[[str], object] = sys.stdout.write, poll_s: float = POLL_S) -> int:
    """Write the job's log as it grows, until the job ends; returns the exit code of its command."""
    written = 0
    while True:
        info = _patiently(lambda: client.get_job_info(job))
        log = _patiently(lambda: client.get_job_logs(job))
        write(log[written:])
        written = max(written, len(log))
        if str(getattr(info.status, "value", info.status)) in DONE:
            break
        time.sleep(poll_s)
    status = str(getattr(info.status, "value", info.status))
    if status == "SUCCEEDED":
        return 0
    if info.driver_exit_code is not None and info.driver_exit_code > 0:
        return int(info.driver_exit_code)
    write(f"job {job} {status.lower()}: {info.message}\n")
    return 1


def _status(client: Client, job: str) -> str | None:
    """The status of the job; None where there is no such job."""
    found = [info for info in _patiently(client.list_jobs) if info.submission_id == job]
    return str(getattr(found[0].status, "value", found[0].status)) if found else None


def _patiently(ask: Callable[[], Any], state: str = "a job that runs goes on, the same command follows it") -> Any:
    """The answer of the job server, which may have just started or be out of reach for a while.

    ``state``: of the job, for the message when it stays so.
    """
    since = time.monotonic()
    while True:
        try:
            return ask()
        except (ConnectionError, RuntimeError) as error:
            if time.monotonic() - since > PATIENCE_S:
                raise UserError(
                    f"the job server must do what it is asked, it did not for {PATIENCE_S:.0f} s ({_line(error)}); "
                    f"{state}"
                ) from error
            time.sleep(POLL_S)


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
