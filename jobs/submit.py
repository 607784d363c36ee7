"""Submit a spec to a Ray cluster as a job, follow it, and end with its exit code.

    RAY_API_SERVER_ADDRESS=http://HEAD:8265 python jobs/submit.py jobs/quickstart.yaml --results /shared/quickstart

The same command again follows the job, starts a failed one again (it resumes) and leaves a finished one alone. The
folder that is submitted is ``--working-dir`` (without what git ignores); the spec is a path in it, or a
shipped name.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence

from raybench.cluster.submission import connect, entrypoint, follow, submission_id, submit
from raybench.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("spec", help="a path below --working-dir, or a shipped name")
    parser.add_argument("--results", required=True, help="an absolute path that all nodes see, or a URL")
    parser.add_argument("--store", help="where reference models are kept; likewise")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for raybench run")
    parser.add_argument("--server", help="the job server (default: RAY_API_SERVER_ADDRESS)")
    parser.add_argument("--working-dir", default=".", help="what is submitted (default: this folder)")
    parser.add_argument("--no-wait", action="store_true", help="submit and return, exit code 0")
    parser.add_argument("--again", action="store_true", help="run a job that has succeeded once more")
    given = parser.parse_args(argv)
    try:
        command = shlex.join(entrypoint(given.spec, given.set, given.results, given.store))
        job = submission_id(given.spec, given.set, given.results)
        client = connect(given.server)
        done = submit(client, job, command, os.path.abspath(given.working_dir), given.again)
        print(f"{job}: {done}", flush=True)
        return 0 if given.no_wait else follow(client, job)
    except UserError as error:
        print(f"submit: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{job} goes on; to stop it: ray job stop {job}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
