"""GET /metrics, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kandiga_run.memory.use import memory_use
from kandiga_run.scheduler import Scheduler

#: Seconds; local answers take from a blink to minutes.
_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

_COUNTERS = (
    ("prompt_tokens", "prompt_tokens", "Tokens of prompts."),
    ("cached_prompt_tokens", "cached_tokens", "Prompt tokens a kept state had already seen."),
    ("generated_tokens", "generated_tokens", "Tokens generated."),
    ("answers_finished", "finished", "Answers that ended by themselves."),
    ("answers_cancelled", "cancelled", "Answers given up, mostly by clients that left."),
    ("answers_failed", "failed", "Answers that could not be computed."),
    ("answers_refused", "refused", "Requests refused because the queue was full."),
    ("prefix_cache_hits", "cache_hits", "Prompts of which a kept state had a beginning."),
    ("prefix_cache_misses", "cache_misses", "Prompts computed from their first token."),
)
_GAUGES = (
    ("answers_running", "running", "Answers being computed."),
    ("answers_waiting", "waiting", "Requests in the queue."),
    ("context_tokens", "context_tokens", "Tokens of prompt and answer a request may have."),
    ("prefill_tokens_per_second", "prefill_tokens_per_second", "Prompt tokens a second of work."),
    ("decode_tokens_per_second", "decode_tokens_per_second", "Answer tokens a second of work."),
    ("state_bytes", "state_bytes", "Keys, values and recurrent state of running answers."),
    ("prefix_cache_bytes", "cache_bytes", "States kept of prompts seen before."),
)


class Metrics:
    """Counters of the server and, read when asked for, of its scheduler and process."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "kandiga_http_requests",
            "Requests answered, by path and status.",
            ("path", "status"),
            registry=self._registry,
        )
        self.seconds = Histogram(
            "kandiga_http_request_seconds",
            "Time to the last byte of an answer.",
            ("path",),
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self.first_token_seconds = Histogram(
            "kandiga_first_token_seconds",
            "Time from a request's arrival to the first token of its answer, queue included.",
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._registry.register(_SchedulerCollector(scheduler))

    def text(self) -> bytes:
        """Return the figures of this moment."""
        return generate_latest(self._registry)


class _SchedulerCollector(Collector):
    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        status, memory = self._scheduler.status(), memory_use()
        for name, field, text in _COUNTERS:
            yield CounterMetricFamily(f"kandiga_{name}", text, value=getattr(status, field))
        for name, field, text in _GAUGES:
            # No figure is 0: nothing was computed in the time it looks back at.
            yield GaugeMetricFamily(f"kandiga_{name}", text, value=getattr(status, field) or 0)
        by_kv = CounterMetricFamily(
            "kandiga_answers_by_kv",
            "Answers that ended by themselves, by how keys and values were held at their end.",
            labels=("kv",),
        )
        for kv, answers in status.finished_by_kv.items():
            by_kv.add_metric((kv,), answers)
        yield by_kv
        yield GaugeMetricFamily(
            "kandiga_resident_bytes", "Memory of the process.", value=memory.resident_bytes
        )


class CountRequests:
    """Counts every request with its status and time."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]) -> None:
        """`paths` are counted by name; all others together, as anybody can ask for any path."""
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self._paths else "other"
        status, started = "gone", perf_counter()

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            self._metrics.requests.labels(path, status).inc()
            self._metrics.seconds.labels(path).observe(perf_counter() - started)
