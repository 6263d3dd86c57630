"""What `kandiga-run serve` was told, apart from the engine."""

from __future__ import annotations

from dataclasses import dataclass

#: 16 MiB of JSON are some four million tokens: more than any context, less than any memory.
MAX_BODY_BYTES = 16 << 20
#: Proxies and clients give up on connections silent for a minute, some for 15 seconds.
KEEP_ALIVE_SECONDS = 10.0


@dataclass(frozen=True)
class ServerSettings:
    """How the server is reached and what it accepts."""

    #: the model's name in requests and answers
    model: str
    host: str = "127.0.0.1"
    #: Other names under which clients may ask for it; "*" stands for any.
    aliases: tuple[str, ...] = ()
    api_key: str | None = None
    #: Web pages of these origins may use the server from a browser; "*" stands for any.
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = MAX_BODY_BYTES
    keep_alive_seconds: float = KEEP_ALIVE_SECONDS
    #: Whether the chat template is asked for reasoning, or for none; None leaves it the choice.
    thinks: bool | None = None

    def accepts_model(self, name: str | None) -> bool:
        """Whether a request for `name` is for this model; one without a name is."""
        return name is None or name == self.model or name in self.aliases or "*" in self.aliases
