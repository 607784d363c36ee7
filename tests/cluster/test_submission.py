"""Jobs by a server that the test plays: one submission however often it is asked for, and the exit code of the run."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import yaml

from raybench.cluster import submission
from raybench.cluster.submission import entrypoint, follow, submission_id, submit
from raybench.errors import UserError


@dataclass
class Server:
    """A job server whose job is at ``steps``: (status, log so far) per look."""

    steps: list = field(default_factory=list)
    exit_code: int | None = None
    known: bool = False
    calls: list = field(default_factory=list)
    down: int = 0  # calls that will not be answered

    def submit_job(self, **given):
        self._answer()
        self.calls.append(("submit", given["submission_id"], given["entrypoint"], given["runtime_env"]))
        self.known = True
        return given["submission_id"]

    def delete_job(self, job_id):
        self.calls.append(("delete", job_id))
        return True

    def list_jobs(self):
        self._answer()
        return [self.get_job_info("j")] if self.known else []

    def get_job_info(self, job_id):
        self._answer()
        status = self.steps[0][0]
        return SimpleNamespace(submission_id="j", status=status, message="why", driver_exit_code=self.exit_code)

    def get_job_logs(self, job_id):
        return self.steps[0][1] if len(self.steps) == 1 else self.steps.pop(0)[1]

    def _answer(self):
        if self.down:
            self.down -= 1
            raise ConnectionError("refused")


@pytest.mark.parametrize(
    ("known", "again", "done", "calls"),
    [
        (None, False, "submitted", ["submit"]),
        ("PENDING", False, "running", []),
        ("RUNNING", True, "running", []),
        ("SUCCEEDED", False, "done", []),
        ("SUCCEEDED", True, "submitted", ["delete", "submit"]),
        ("FAILED", False, "submitted", ["delete", "submit"]),
        ("STOPPED", False, "submitted", ["delete", "submit"]),
    ],
)
def test_a_job_is_submitted_once(known, again, done, calls):
    server = Server([(known, "")], known=known is not None)
    assert submit(server, "j", "python -m raybench", "folder", again) == done
    assert [call[0] for call in server.calls] == calls
    if "submit" in calls:
        assert server.calls[-1][1:] == ("j", "python -m raybench", {"working_dir": "folder"})


@pytest.mark.parametrize(
    ("end", "exit_code", "code", "last"),
    [("SUCCEEDED", 0, 0, "two\n"), ("FAILED", 2, 2, "two\n"), ("FAILED", None, 1, "j failed: why\n")],
)
def test_the_log_is_written_once_and_the_exit_code_is_the_runs(end, exit_code, code, last):
    steps = [("PENDING", ""), ("RUNNING", "one\n"), ("RUNNING", "one\ntw"), (end, "one\ntwo\n")]
    written = []
    assert follow(Server(steps, exit_code), "j", written.append, poll_s=0) == code
    assert "".join(written).startswith("one\ntwo\n")
    assert "".join(written).endswith(last)


def test_a_server_out_of_reach_is_waited_for_and_then_one_line(monkeypatch):
    monkeypatch.setattr(submission, "POLL_S", 0.0)
    monkeypatch.setattr(submission.time, "sleep", lambda seconds: None)
    assert submit(Server(down=3), "j", "command", "folder") == "submitted"
    monkeypatch.setattr(submission, "PATIENCE_S", -1.0)
    with pytest.raises(UserError, match=r"job server must do what .*\(refused\); a job that runs goes on"):
        follow(Server([("RUNNING", "")], down=9), "j", lambda text: None, poll_s=0)
    full = Server()
    monkeypatch.setattr(full, "submit_job", lambda **given: full.get_job_info(setattr(full, "down", 1)))
    with pytest.raises(UserError, match=r"\(refused\); the job is not submitted"):
        submit(full, "j", "command", "folder")


def test_the_id_is_the_spec_and_where_its_results_go(tmp_path, make_spec):
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(make_spec()))
    one = submission_id(str(path), [], "/shared/a")
    assert one.startswith("raybench-tiny-")
    assert submission_id(str(path), [], "/shared/a") == one
    assert submission_id(str(path), ["gold_seeds=3"], "/shared/a") != one
    assert submission_id(str(path), [], "/shared/b") != one


def test_places_must_mean_the_same_on_every_node():
    command = entrypoint("quickstart", ["gold_seeds=3"], "s3://bucket/a", "/shared/store")
    assert command[3:] == [
        "run", "quickstart", "--address", "auto", "--results", "s3://bucket/a", "--store", "/shared/store",
        "--set", "gold_seeds=3",
    ]  # fmt: skip
    with pytest.raises(UserError, match="--results must be an absolute path that all nodes see, or a URL, got here"):
        entrypoint("quickstart", [], "here", None)
