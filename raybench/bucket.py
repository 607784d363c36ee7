"""A prefix in an object store behind an fsspec URL (``s3://bucket/prefix``, ``gs://bucket/prefix``).

One PUT is atomic there and a later listing shows it; there are no folders, no rename and no locks. Credentials and
endpoint come from the environment, as the client library takes them (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``,
``GOOGLE_APPLICATION_CREDENTIALS``, fsspec's configuration): never from the URL, which stands in rows and messages.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

from raybench.errors import StorageError, UserError

# Scheme -> what brings it. Others that fsspec knows (sftp, smb, ...) write in place: half a file can be seen there.
EXTRAS = {"s3": "raybench[s3]", "s3a": "raybench[s3]", "gs": "raybench[gcs]", "gcs": "raybench[gcs]"}
_ATOMIC = (*EXTRAS, "memory")  # memory: this process only, for tests
_LONGEST = 300  # of a client library's words, in characters
_SECRETS = re.compile(r"(?<=://)[^/\s]*@|\?\S*")


def without_secrets(text: str) -> str:
    """``text`` with user names, passwords and queries of the URLs in it replaced by stars."""
    return _SECRETS.sub(lambda found: "***@" if found[0].endswith("@") else "?***", text)


class Bucket:
    """See the module docstring. ``UserError`` for a URL that cannot be used; ``StorageError`` where a request fails."""

    def __init__(self, url: str) -> None:
        if _SECRETS.search(url):
            raise UserError(
                f"a storage URL must hold no credentials and no query, got {without_secrets(url)}; "
                "set them in the environment (AWS_ACCESS_KEY_ID, ...)"
            )
        self.url = url.rstrip("/")
        scheme, _, rest = self.url.partition("://")
        if scheme not in _ATOMIC or not rest.strip("/"):
            raise UserError(
                f"a storage URL must be s3://bucket/prefix or gs://bucket/prefix, got {url}; "
                "mount other storage and name the folder"
            )
        import fsspec  # slow to import, and most runs stay on a disk

        for client in ("gcsfs", "s3fs", "google"):  # they log tracebacks of what is one line here
            logging.getLogger(client).addHandler(logging.NullHandler())
        try:
            self._fs: Any = fsspec.filesystem(scheme, use_listings_cache=False)
        except ImportError as error:
            raise UserError(
                f"{scheme}:// needs a package that is not installed here, got {url}; "
                f"python -m pip install '{EXTRAS[scheme]}'"
            ) from error
        except Exception as error:  # credentials are looked for here already by some
            raise self._refused("be reachable", error) from error
        self._root = str(self._fs._strip_protocol(self.url))
        self._name = self._root.split("/", 1)[0]  # empty where a scheme has no buckets (memory)

    def __str__(self) -> str:
        return self.url

    def exists(self) -> bool:
        return bool(self._listed(lambda: self._fs.ls(self._root, detail=False)))

    def names(self, sub: str) -> list[str]:
        found = self._listed(lambda: self._fs.ls(self._at(sub), detail=False))
        names = [path.rsplit("/", 1)[-1] for path in found]
        return sorted(f"{sub}/{name}" for name in names if name.endswith(".parquet") and name[0] not in "._")

    def files(self, sub: str) -> list[str]:
        return sorted(path[len(self._root) + 1 :] for path in self._listed(lambda: self._fs.find(self._at(sub))))

    def has(self, name: str) -> bool:
        return name in self.files(name)  # HEAD does not tell a missing object from a missing bucket, a listing does

    def open(self, name: str) -> IO[bytes]:
        with self._asking("be readable"):
            return io.BytesIO(self._fs.cat_file(self._at(name)))

    def put(self, name: str, data: bytes) -> None:
        try:
            with self._asking("take writes"):
                self._fs.pipe_file(self._at(name), data)
        except FileNotFoundError as error:
            raise self._refused("take writes", error) from error

    def delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError), self._asking("let files be deleted"):
            self._fs.rm_file(self._at(name))

    def prepare(self, what: str, option: str) -> None:
        probe = f".probe-{uuid.uuid4().hex}"
        try:
            self.put(probe, b"probe")
            self.open(probe).close()
            self.delete(probe)
        except StorageError as error:
            raise StorageError(f"the {what} must be writable: {error}; or give another one with {option}") from error

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        yield  # DriverLock reads its own entry back instead

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _listed(self, listing: Callable[[], Iterable[Any]]) -> list[str]:
        try:
            with self._asking("be readable"):
                self._fs.invalidate_cache()
                return [str(path) for path in listing()]
        except FileNotFoundError:
            return []

    @contextlib.contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """Whatever the client libraries raise (families of botocore, aiohttp, google-auth) is one line; only a missing
        object stays ``FileNotFoundError``."""
        try:
            yield
        except FileNotFoundError as error:
            self._check_bucket(error)
            raise
        except Exception as error:
            raise self._refused(what, error) from error

    def _check_bucket(self, error: FileNotFoundError) -> None:
        """``StorageError`` if it is the bucket that is gone: no rows are something else than no bucket."""
        response = getattr(error.__cause__, "response", None) or {}
        code = response.get("Error", {}).get("Code")
        if code == "NoSuchBucket":
            raise self._refused("be there", error) from error
        if code is None and self._name and not self.url.startswith("s3"):
            try:
                self._fs.info(self._name)
            except FileNotFoundError:
                raise self._refused("be there", error) from error

    def _refused(self, what: str, error: Exception) -> StorageError:
        reason = without_secrets(" ".join(str(error).split())[:_LONGEST]) or type(error).__name__
        return StorageError(
            f"{self.url} must {what}, got {reason}; check the bucket, its permissions, and credentials and endpoint "
            "in the environment"
        )
