"""A bucket as a folder: what is there, what is not, and one line for everything that goes wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from raybench import bucket as bucket_module
from raybench.bucket import Bucket, without_secrets
from raybench.content_store import ContentStore
from raybench.errors import StorageError, UserError
from raybench.folder import open_folder
from raybench.leaderboard.lock import NAME, DriverLock
from tests.s3 import SECRET

ASKED: dict[str, Callable[[Bucket], Any]] = {
    "exists": lambda b: b.exists(),
    "names": lambda b: b.names("trials"),
    "files": lambda b: b.files("trials"),
    "has": lambda b: b.has("spec.yaml"),
    "open": lambda b: b.open("spec.yaml"),
    "put": lambda b: b.put("spec.yaml", b"x"),
    "delete": lambda b: b.delete("spec.yaml"),
    "prepare": lambda b: b.prepare("results folder", "--results"),
}


def said(ask: Callable[[Bucket], Any], where: str = "s3://bench/run") -> str:
    with pytest.raises(StorageError) as caught:
        ask(Bucket(where))
    message = str(caught.value)
    assert "\n" not in message
    assert where in message
    assert "environment" in message
    assert SECRET not in message
    return message


def test_files_come_and_go(s3: Any) -> None:
    folder = open_folder("s3://bench/run/")
    assert str(folder) == "s3://bench/run"
    folder.prepare("results folder", "--results")
    assert not folder.exists()
    assert folder.names("trials") == folder.files("trials") == []
    folder.put("trials/b.parquet", b"b")
    folder.put("trials/a.parquet", b"a")
    folder.put("trials/notes.txt", b"")
    folder.put("trials/deep/er/c.json", b"c")
    assert folder.exists()
    assert folder.names("trials") == ["trials/a.parquet", "trials/b.parquet"]
    assert folder.files("trials")[2:] == ["trials/deep/er/c.json", "trials/notes.txt"]
    assert folder.has("trials/a.parquet")
    assert not folder.has("trials/a")
    assert not folder.has("trials/deep")
    with folder.open("trials/b.parquet") as file:
        assert file.read() == b"b"
    with pytest.raises(FileNotFoundError):
        folder.open("trials/none.parquet")
    folder.delete("trials/b.parquet")
    folder.delete("trials/b.parquet")
    assert folder.names("trials") == ["trials/a.parquet"]
    s3.client.put_object(Bucket="bench", Key="run/trials/of-another-process.parquet", Body=b"")
    assert len(folder.names("trials")) == 2  # no listing is remembered


def test_a_big_object_is_whole_or_absent(s3: Any) -> None:
    """Above 100 MiB the client sends parts; the object appears when the last one has come."""
    data = torch.arange(27 * 2**20, dtype=torch.int32).numpy().tobytes()
    folder = Bucket("s3://bench/run")
    folder.put("big", data)
    with folder.open("big") as file:
        assert file.read() == data


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_a_bucket_that_is_gone_is_not_an_empty_one(s3: Any, ask: Callable[[Bucket], Any]) -> None:
    s3.remove("bench")
    assert "The specified bucket does not exist" in said(ask)


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_a_wrong_key(s3: Any, ask: Callable[[Bucket], Any]) -> None:
    s3.check_keys(True)
    s3.use("AKIAWRONG", SECRET)
    said(ask)


@pytest.mark.parametrize("ask", ["put", "delete", "prepare"])
def test_a_bucket_that_may_only_be_read(s3: Any, ask: str) -> None:
    Bucket("s3://bench/run").put("spec.yaml", b"x")
    reader = s3.reader("bench")
    s3.check_keys(True)
    s3.use(*reader)
    folder = Bucket("s3://bench/run")
    assert (folder.exists(), folder.files(""), folder.has("spec.yaml")) == (True, ["spec.yaml"], True)
    assert folder.open("spec.yaml").read() == b"x"
    assert "Access Denied" in said(ASKED[ask])


def test_no_credentials_no_server_and_no_endpoint(s3: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    s3.use("", "")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "Unable to locate credentials" in said(ASKED["put"])
    s3.endpoint = "nonsense"
    s3.use("k", SECRET)
    assert "Invalid endpoint" in said(ASKED["put"])


@pytest.mark.parametrize(
    "url", ["s3://key:secret-word@bench/run", "s3://secret-word@bench/run", "gs://bench/run?token=secret-word"]
)
def test_a_url_with_a_secret_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(UserError, match="must hold no credentials and no query") as caught:
        open_folder(url)
    assert "secret-word" not in str(caught.value)


def test_secrets_of_urls_are_starred() -> None:
    text = "GET https://user:word@host/b?X-Amz-Signature=abc failed, see http://host/b"
    assert without_secrets(text) == "GET https://***@host/b?*** failed, see http://host/b"


@pytest.mark.parametrize(("url", "extra"), [("s3://b/x", "raybench[s3]"), ("gs://b/x", "raybench[gcs]")])
def test_a_missing_package_is_named(url: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def absent(*_: object, **__: object) -> None:
        raise ImportError("Install it")

    monkeypatch.setattr(fsspec, "filesystem", absent)
    with pytest.raises(UserError) as caught:
        open_folder(url)
    assert f"python -m pip install '{extra}'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_scheme_has_its_package() -> None:
    assert set(bucket_module._ATOMIC) - {"memory"} == set(bucket_module.EXTRAS)


def test_entries_of_the_store(s3: Any) -> None:
    store = ContentStore("s3://bench/store")
    store.probe()
    tensors, record = {"w": torch.randn(5, 3), "n": torch.tensor(2)}, {"train_s": 0.25}
    assert store.get("references", "abcd") is None
    store.put("references", "abcd", tensors, record)
    assert store.keys("references") == {"abcd"}
    entry = ContentStore("s3://bench/store").get("references", "abcd")
    assert entry is not None
    assert all(torch.equal(entry[0][name], t) for name, t in tensors.items())
    assert entry[1]["train_s"] == 0.25
    (key,) = [key for key in s3.objects("bench") if key.endswith(".safetensors")]
    damaged = bytearray(s3.objects("bench")[key])
    damaged[-1] ^= 1
    s3.client.put_object(Bucket="bench", Key=key, Body=bytes(damaged))
    assert store.get("references", "abcd") is None
    assert store.keys("references") == set()
    store.put("references", "abcd", tensors, record)
    assert store.get("references", "abcd") is not None


def test_the_record_of_an_entry_comes_last(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put, seen = Bucket.put, []
    store = ContentStore("s3://bench/store")

    def watched(self: Bucket, name: str, data: bytes) -> None:
        seen.append((name.rsplit(".", 1)[1], store.has("kind", "abcd"), store.get("kind", "abcd")))
        put(self, name, data)

    monkeypatch.setattr(Bucket, "put", watched)
    store.put("kind", "abcd", {"w": torch.ones(2)}, {})
    assert seen == [("safetensors", False, None), ("json", False, None)]


def test_one_driver(s3: Any) -> None:
    """A live driver elsewhere is refused by its heartbeat, a silent one is taken over; a bucket has no other locks."""
    with DriverLock("s3://bench/run", command="first", beat_s=0.1) as first:
        with pytest.raises(UserError, match=r"s3://bench/run is held by process .* \(first\)"):
            DriverLock("s3://bench/run").acquire()
        assert not first.lost
        begin = s3.objects("bench")[f"run/{NAME}"]
        time.sleep(0.5)
        assert s3.objects("bench")[f"run/{NAME}"] != begin
        s3.client.delete_object(Bucket="bench", Key=f"run/{NAME}")
        time.sleep(0.5)
        with pytest.raises(UserError, match="taken over by another"):
            first.check()
    assert s3.objects("bench") == {}


def test_what_ended_a_run_is_what_people_hear(s3: Any) -> None:
    """Not that the lock cannot be given back either."""

    def run() -> None:
        with DriverLock("s3://bench/run", beat_s=60):
            s3.remove("bench")
            raise ValueError("what ended the run")

    with pytest.raises(ValueError, match="what ended the run"):
        run()
