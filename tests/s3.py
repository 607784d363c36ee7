"""An S3 server on loopback (moto's), and people with keys to it."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import boto3
import pytest
import s3fs

KEY, SECRET, REGION = "raybench-test-key-id", "raybench-test-secret-value", "us-east-1"


@dataclass
class S3:
    """The server, seen from outside: what an administrator does to buckets and keys while raybench runs."""

    endpoint: str
    patch: pytest.MonkeyPatch
    client: Any = field(init=False)

    def __post_init__(self) -> None:
        self.server = self.endpoint
        self.use(KEY, SECRET)
        self.client = boto3.client("s3")

    def use(self, key: str, secret: str) -> None:
        """Set the credentials of this process as a person would: in the environment."""
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL")
        for name, value in zip(names, (key, secret, REGION, self.endpoint), strict=True):
            self.patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()  # fsspec keeps clients with the keys that they began with

    def objects(self, bucket: str) -> dict[str, bytes]:
        """Key -> content of everything in a bucket."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
        return {key: self.client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}

    def remove(self, bucket: str) -> None:
        """Delete a bucket with all that is in it."""
        for key in self.objects(bucket):
            self.client.delete_object(Bucket=bucket, Key=key)
        self.client.delete_bucket(Bucket=bucket)

    def reader(self, bucket: str) -> tuple[str, str]:
        """Key and secret of a new user who may list and read ``bucket``, and nothing else."""
        iam = boto3.client("iam")
        iam.create_user(UserName="reader")
        allowed = {"Effect": "Allow", "Action": ["s3:GetObject", "s3:ListBucket"]}
        allowed["Resource"] = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
        policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
        iam.put_user_policy(UserName="reader", PolicyName="read", PolicyDocument=policy)
        made = iam.create_access_key(UserName="reader")["AccessKey"]
        return made["AccessKeyId"], made["SecretAccessKey"]

    def check_keys(self, checking: bool) -> None:
        """Whether the server looks at keys and policies from now on."""
        free = "0" if checking else "1000000000"
        self._post("reset-auth", free.encode())

    def reset(self) -> None:
        """Forget everything."""
        self._post("reset", b"")

    def _post(self, what: str, data: bytes) -> None:
        headers = {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(f"{self.server}/moto-api/{what}", data, headers)).close()


# A process of its own: its warnings are not ours, and it ends with this process's end of the pipe.
SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print("http://%s:%d" % server.get_host_and_port(), flush=True)
sys.stdin.read()
"""


def serve() -> Iterator[str]:
    """The endpoint of a server that lives as long as the generator."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        yield next(line.strip() for line in server.stdout if line.startswith("http"))
        server.stdin.close()
