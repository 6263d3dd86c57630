"""A checkpoint on the Hugging Face Hub: downloaded to its own cache, then read as a folder."""

from __future__ import annotations

import re
from pathlib import Path

from kandiga_pack.errors import PackError, UnreadableError
from kandiga_pack.sources.checkpoint import SHARD_PATTERN, CheckpointSource

# Everything but weights in other formats: what is downloaded is what will be packed.
COMPANION_PATTERNS = [
    "*.json",
    "*.jsonl",
    "*.jinja",
    "*.md",
    "*.model",
    "*.py",
    "*.tiktoken",
    "*.txt",
    "LICENSE*",
]
ALLOW_PATTERNS = [SHARD_PATTERN, *COMPANION_PATTERNS]
# Folders of a repository hold other formats of the same model (original/, onnx/).
IGNORE_PATTERNS = ["*/*"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(text: str) -> bool:
    """Whether `text` has the form owner/name."""
    return _HUB_ID.fullmatch(text) is not None


def open_hub(repository: str, *, revision: str | None = None) -> CheckpointSource:
    """Download a repository (what the cache lacks of it) and return it as a source.

    Raises:
        UnreadableError: no such repository or revision, no access, or no network.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=ALLOW_PATTERNS,
            ignore_patterns=IGNORE_PATTERNS,
        )
    except HFValidationError as error:
        raise PackError(f"{repository}: not a Hub id ({error})") from error
    except LocalEntryNotFoundError as error:
        raise UnreadableError(
            f"{repository}: no such file or folder here, and the Hub cannot be reached; check the "
            "path, or the network"
        ) from error
    except HfHubHTTPError as error:
        reason = str(error).strip().splitlines()[0]
        raise UnreadableError(
            f"{repository}: no such file or folder here, and the Hub says: {reason}"
        ) from error
    # The cache keeps each commit in a folder called by its hash.
    path = Path(folder)
    return CheckpointSource(path, name=repository, repository=repository, revision=path.name)
