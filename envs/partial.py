"""Downloads that can be gone on with, and that never mix two versions of a file."""

from __future__ import annotations

import errno
import json
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from email.message import Message
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import TypeAlias, cast

from tqdm import tqdm

from aaren_rl.errors import DataError
from aaren_rl.folders import replace_file

Say: TypeAlias = Callable[[str], object]


class Partial:
    """A download that has come in part, with what the host said of the file it is part of.

    Args:
        path: of the part; the record lies beside it under the ending ".json".
        url: where it comes from.
    """

    def __init__(self, path: Path, url: str) -> None:
        self.path = path
        self.url = url
        self._record = path.with_name(f"{path.name}.json")

    def delete(self) -> None:
        """Deletes the part and its record."""
        # The record first: a part without one is never gone on with.
        self._record.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def complete(self, say: Say) -> None:
        """Downloads what is missing. A part of another version of the file is dropped, and that is said.

        Raises:
            DataError: the host refuses, the download breaks off, or the disk is full.
        """
        version = self._version()
        if version is None:
            self.delete()
        here = self.path.stat().st_size if version else 0
        headers = {"Range": f"bytes={here}-", "If-Range": version} if version else {}
        try:
            with open_url(urllib.request.Request(self.url, headers=headers), timeout=30) as answer:
                goes_on = answer.status == 206
                if goes_on and not version:
                    raise DataError(f"{self.url} gave a part of the file, though all of it was asked for")
                if goes_on and (_version_of(answer.headers) != version or _first_byte(answer.headers) != here):
                    raise _Changed
                if version and not goes_on:
                    say(f"data: {self.url} has changed on its host, or is not given in parts; it is loaded anew")
                self._take(answer, here if goes_on else 0)
        except urllib.error.HTTPError as error:
            if error.code != 416 or not version:
                raise DataError(f"{self.url} answered {error.code} {error.reason}") from error
            # Nothing comes after the part. It is whole if its version has just this many bytes.
            if self._expected() != here:
                self._start_over(say)
        except _Changed:
            self._start_over(say)
        except (OSError, HTTPException) as error:
            raise self._broken_off(error) from error

    def _start_over(self, say: Say) -> None:
        say(f"data: the part of {self.url} that was here does not fit the host's file; it is loaded anew")
        self.delete()
        self.complete(say)

    def _take(self, answer: HTTPResponse, here: int) -> None:
        """Writes what a host sends behind the first bytes of the part.

        Raises:
            DataError: not all of it comes, or the disk is full.
        """
        length = answer.headers.get("Content-Length")
        total = None if length is None else int(length) + here
        if not here:
            self.delete()
            record = {"url": self.url, "version": _version_of(answer.headers), "size": total}
            replace_file(self._record, json.dumps(record))
        free = shutil.disk_usage(self.path.parent).free
        if total is not None and total - here > free:
            raise DataError(
                f"{self.url} needs {total - here} bytes more, {free} are free in {self.path.parent}; free some, or set "
                "D4RL_DATASET_DIR to another disk"
            )
        name = self.url.rpartition("/")[2]
        with (
            self.path.open("ab" if here else "wb") as file,
            tqdm(total=total, initial=here, unit="B", unit_scale=True, desc=name) as bar,
        ):
            while block := answer.read(1 << 20):
                file.write(block)
                bar.update(len(block))
        size = self.path.stat().st_size
        if total is not None and size < total:
            raise DataError(f"{self.url} broke off after {size} of {total} bytes; run again to go on from there")

    def _version(self) -> str | None:
        """Version of the file that the part belongs to; None without a part that can be gone on with."""
        record = self._read_record()
        version = record.get("version")
        if record.get("url") != self.url or not self.path.exists() or not self.path.stat().st_size:
            return None
        return version if isinstance(version, str) else None

    def _expected(self) -> object:
        return self._read_record().get("size")

    def _read_record(self) -> dict[str, object]:
        try:
            record = json.loads(self._record.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def _broken_off(self, error: Exception) -> DataError:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            return DataError(
                f"{self.url} does not fit into {self.path.parent}: {error}; free some space, or set D4RL_DATASET_DIR "
                "to another disk, and run again to go on"
            )
        return DataError(f"{self.url} broke off: {error}; run again to go on from where it stopped")


class _Changed(Exception):
    """The host's answer does not continue the part that is here."""


def _version_of(headers: Message) -> str | None:
    """What names the version of a file to a host: its strong ETag, or else its date; None if the host says neither."""
    etag = headers.get("ETag")
    if etag and not etag.startswith("W/"):
        return etag
    return headers.get("Last-Modified")


def _first_byte(headers: Message) -> int | None:
    found = re.match(r"bytes (\d+)-", headers.get("Content-Range") or "")
    return int(found[1]) if found else None


def open_url(request: urllib.request.Request, timeout: float) -> HTTPResponse:
    """Opens an address; what is asked for by https comes by https, also after a redirection.

    Raises:
        OSError: the host does not answer, refuses, or redirects to another protocol.
    """
    answer = cast(HTTPResponse, urllib.request.urlopen(request, timeout=timeout))
    if request.full_url.startswith("https:") and not answer.url.startswith("https:"):
        answer.close()
        raise OSError(f"it redirects to {answer.url}, which is not https")
    return answer
