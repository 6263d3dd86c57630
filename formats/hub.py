"""The Hugging Face Hub as a place where files are: ids, and ranges of bytes of a file.

It stands in this package because the packer and the runtime both take a published id where they
take a folder, and neither may import the other. Of models and weights it knows nothing.
`formats.published` builds on it: a set that is on the Hub.

huggingface_hub is imported inside the functions that use it. Nobody who works on local files waits
for its half second.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

# Like a path of two components without a leading dot or slash, and as the Hub names things.
_HUB_ID = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


@dataclass(frozen=True)
class HubId:
    """A repository on the Hub, `user/name`, and what of it: branch, tag, commit, None for main."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repository if self.revision is None else f"{self.repository}@{self.revision}"

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which never means anything else later."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None


def parse_hub_id(text: str) -> HubId | None:
    """Return the id that `text` spells, `user/name` or `user/name@revision`, or None.

    >>> parse_hub_id("someone/model@v1")
    HubId(repository='someone/model', revision='v1')
    >>> parse_hub_id("./model") is None
    True
    """
    match = _HUB_ID.fullmatch(text)
    return HubId(match["repository"], match["revision"]) if match else None


class HubError(OSError):
    """The Hub does not give what was asked for. An OSError, since to a caller it is what a missing
    or unreadable file is: errno is ENOENT, EACCES or EHOSTUNREACH, filename the id."""

    def __init__(self, number: int, message: str, hub_id: HubId) -> None:
        super().__init__(number, message, str(hub_id))


@contextmanager
def hub_errors(hub_id: HubId) -> Iterator[None]:
    """Turn what huggingface_hub raises into a HubError of one line."""
    from huggingface_hub import errors
    from huggingface_hub.utils import logging

    if not os.environ.get("HF_HUB_VERBOSITY"):
        # What it warns of, such as each attempt on a dead network, is what is raised in the end.
        logging.set_verbosity(logging.ERROR)
    try:
        yield
    except errors.GatedRepoError as error:
        message = (
            "access must be asked for on its page on the Hub; then log in with `hf auth login`"
        )
        raise HubError(errno.EACCES, message, hub_id) from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(errno.ENOENT, _not_found(error), hub_id) from error
    except errors.RevisionNotFoundError as error:
        message = f"the Hub has no revision {hub_id.revision or 'main'} of it"
        raise HubError(errno.ENOENT, message, hub_id) from error
    except errors.RemoteEntryNotFoundError as error:
        url = str(error.response.url).partition("?")[0]
        message = f"the Hub has no file {url.rpartition('/')[2]} in it"
        raise HubError(errno.ENOENT, message, hub_id) from error
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        raise HubError(errno.EHOSTUNREACH, _unreachable(error), hub_id) from error
    except errors.HFValidationError as error:
        raise HubError(errno.ENOENT, f"not a Hub id ({_first_line(error)})", hub_id) from error
    except errors.HfHubHTTPError as error:
        denied = error.response.status_code in (401, 403)
        message = f"the Hub says: {_first_line(error)}"
        raise HubError(errno.EACCES if denied else errno.EIO, message, hub_id) from error
    except errors.HTTPError as error:  # of the HTTP library beneath
        raise HubError(errno.EHOSTUNREACH, _unreachable(error), hub_id) from error


@contextmanager
def progress_bars(*, shown: bool) -> Iterator[None]:
    """Keep huggingface_hub from drawing where nobody looks."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    hides = not shown and not are_progress_bars_disabled()
    if hides:
        disable_progress_bars()
    try:
        yield
    finally:
        if hides:
            enable_progress_bars()


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids requests, so that only the cache can answer."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _not_found(error: Any) -> str:
    line = "no such file or folder here, and the Hub has no such repository"
    if error.response.status_code == 401:
        # What it answers for a private one, too: it does not tell strangers which exist.
        line += " for all to read; if it is private, log in with `hf auth login` or set HF_TOKEN"
    return line


def _unreachable(error: BaseException) -> str:
    line = "no such file or folder here, and the Hub cannot be reached"
    if is_offline():
        return f"{line} since HF_HUB_OFFLINE is set; what is needed is not in the cache"
    reason = _first_line(error.__cause__ if error.__cause__ is not None else error)
    return f"{line} ({reason}); check the path, or the network"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class HubFiles:
    """Ranges of bytes of the files of one repository, all at one commit.

    Thread-safe. The first answer tells the commit that a branch stands at, and later requests ask
    for that one, so a push meanwhile cannot mix two versions.

    Attributes:
        num_requests: sent, redirections counted.
        num_bytes: of file content received.
    """

    def __init__(self, hub_id: HubId) -> None:
        self.hub_id = hub_id
        self.commit = hub_id.revision if hub_id.is_pinned else None
        self.num_requests = 0
        self.num_bytes = 0
        self._sizes: dict[str, int] = {}
        self._lock = Lock()

    def size_bytes(self, name: str) -> int:
        """Return the size of a file, asking for one byte of it if none was read yet."""
        if name not in self._sizes:
            self.read(name, 0, 1)
        return self._sizes[name]

    def read(self, name: str, offset_bytes: int, length_bytes: int) -> bytes:
        """Return bytes [offset, offset + length) of a file, fewer where the file ends.

        Raises:
            HubError: no such repository, revision or file; no access; no network; or a server that
                gives something else than the range.
        """
        with hub_errors(self.hub_id):
            return self._read(name, offset_bytes, length_bytes)

    def _read(self, name: str, offset_bytes: int, length_bytes: int) -> bytes:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import (
            build_hf_headers,
            hf_raise_for_status,
            http_stream_backoff,
        )

        revision = self.commit or self.hub_id.revision
        url = hf_hub_url(self.hub_id.repository, name, revision=revision)
        headers = build_hf_headers() | {
            "Range": f"bytes={offset_bytes}-{offset_bytes + length_bytes - 1}",
            "Accept-Encoding": "identity",  # a range of compressed bytes would be of no use
        }
        # Until the Hub has answered once, a failure is likely a missing network: say so at once.
        retries = 5 if self.num_requests else 0
        with http_stream_backoff("GET", url, headers=headers, max_retries=retries) as response:
            with self._lock:
                self.num_requests += 1 + len(response.history)
            if response.status_code >= 400:
                response.read()
            hf_raise_for_status(response)
            self._note_commit(response)
            size = self._file_size(response, name, offset_bytes)
            wanted = min(length_bytes, size - offset_bytes)
            data = self._body(response, wanted)
        if len(data) != wanted:
            message = f"{name} ended after {len(data)} of {wanted} bytes"
            raise HubError(errno.EIO, message, self.hub_id)
        with self._lock:
            self.num_bytes += len(data)
            self._sizes[name] = size
        return data

    def _note_commit(self, response: Any) -> None:
        for answer in (*response.history, response):
            commit = answer.headers.get("X-Repo-Commit")
            if self.commit is None and commit and _COMMIT.fullmatch(commit):
                self.commit = commit

    def _file_size(self, response: Any, name: str, offset_bytes: int) -> int:
        """Return the size of the whole file from the headers of an answer."""
        found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if response.status_code == 206 and found and int(found[1]) == offset_bytes:
            return int(found[3])
        length = response.headers.get("Content-Length", "")
        if response.status_code == 200 and offset_bytes == 0 and length.isdigit():
            return int(length)  # the whole file; no more of it is read than asked for
        raise HubError(
            errno.EIO,
            f"{name}: the server answers {response.status_code} to a request for a range of bytes",
            self.hub_id,
        )

    @staticmethod
    def _body(response: Any, wanted: int) -> bytes:
        data = bytearray()
        for piece in response.iter_bytes():
            data += piece[: wanted - len(data)]
            if len(data) >= wanted:
                break
        return bytes(data)
