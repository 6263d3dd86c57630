"""What the routes share: the model, its queue, and the server's settings."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable

from kandiga_run.answers.constraint import Grammars
from kandiga_run.answers.parts import AnswerFormat
from kandiga_run.scheduler import Scheduler
from kandiga_run.server.errors import ApiError
from kandiga_run.server.metrics import Metrics
from kandiga_run.server.response_memory import ResponseMemory
from kandiga_run.server.settings import ServerSettings
from kandiga_run.tokenizer.prompts import Prompts
from kandiga_run.tokenizer.token_bytes import TokenBytes

_log = logging.getLogger(__name__)

# Names a client makes up do not fill the log.
_MOST_TOLD = 100


class Service:
    """One model being served."""

    def __init__(self, scheduler: Scheduler, prompts: Prompts, settings: ServerSettings) -> None:
        """Serve what `scheduler` computes; its owner closes it."""
        self.scheduler, self.prompts, self.settings = scheduler, prompts, settings
        self.format = AnswerFormat.of(prompts)
        self.token_bytes = TokenBytes(prompts.tokenizer)
        self.responses = ResponseMemory()
        self.metrics = Metrics(scheduler)
        #: Unix seconds
        self.started = int(time.time())
        #: names of unknown fields that were told
        self._told: set[str] = set()
        self._grammars: Grammars | None = None
        self._making_grammars = threading.Lock()

    @property
    def grammars(self) -> Grammars:
        """Return what constraints are made of, indexed at first use: it takes a second."""
        with self._making_grammars:
            if self._grammars is None:
                self._grammars = Grammars(
                    self.prompts.tokenizer,
                    self.scheduler.engine.vocab_size,
                    self.prompts.stop_token_ids,
                )
            return self._grammars

    def note_unknown(self, names: Iterable[str]) -> None:
        """Tell in the log, once each, which fields of a request have no effect."""
        new = sorted(set(names) - self._told)[: _MOST_TOLD - len(self._told)]
        if new:
            self._told.update(new)
            shown = ", ".join(repr(name[:40]) for name in new)
            _log.warning("no effect, since not known here: %s in a request", shown)

    def check_model(self, name: str | None) -> None:
        """Raise a 404 for a request that names another model: the answer would not be its own."""
        if not self.settings.accepts_model(name):
            raise ApiError(
                404,
                f"the model {name!r} is not served here, {self.settings.model!r} is "
                "(serve --alias accepts other names)",
                code="model_not_found",
                param="model",
            )
