"""What /metrics tells Prometheus: counts, times and lengths, and nothing of what was said."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from reverie.serve.engine import Engine
from reverie.serve.sessions import Sessions

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Of one process."""

    def __init__(self, engine: Engine, sessions: Sessions) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Engine(engine, sessions))
        self._requests = Counter("reverie_requests", "Requests", ["route", "status"], registry=self._registry)
        first, gap = "From a request to its first piece", "Between two pieces of an answer"
        self._first = Histogram("reverie_first_piece_seconds", first, buckets=_SECONDS, registry=self._registry)
        self._gap = Histogram("reverie_piece_seconds", gap, buckets=_SECONDS, registry=self._registry)

    def request(self, route: str, status: int) -> None:
        """Count a request; `route` is the pattern of its path, not what a client wrote."""
        self._requests.labels(route, status).inc()

    def stopwatch(self) -> Stopwatch:
        return Stopwatch(self._first, self._gap)

    def text(self) -> bytes:
        return generate_latest(self._registry)


class Stopwatch:
    """Times the pieces of one request from now on."""

    def __init__(self, first: Histogram, gap: Histogram) -> None:
        self._next, self._gap, self._before = first, gap, time.monotonic()

    def piece(self) -> None:
        now = time.monotonic()
        self._next.observe(now - self._before)
        self._next, self._before = self._gap, now


class _Engine(Collector):
    """The engine's own counts, as they are when somebody asks."""

    def __init__(self, engine: Engine, sessions: Sessions) -> None:
        self._engine, self._sessions = engine, sessions

    def collect(self) -> Iterator[Metric]:
        engine, counts = self._engine, self._engine.counts
        yield GaugeMetricFamily("reverie_running", "Requests that are worked on", engine.num_running)
        yield GaugeMetricFamily("reverie_waiting", "Requests that wait for these", engine.num_waiting)
        yield GaugeMetricFamily("reverie_live_sessions", "Sessions in memory", self._sessions.num_live)
        yield CounterMetricFamily("reverie_tokens_heard", "Tokens that were read awake", counts.tokens_heard)
        yield CounterMetricFamily("reverie_tokens_written", "Tokens of answers", counts.tokens_written)
        yield CounterMetricFamily("reverie_tokens_batched", "Of these, in a call with others", counts.batched)
        yield CounterMetricFamily("reverie_sleeps", "Windows that were slept over", counts.sleeps)
        yield CounterMetricFamily("reverie_sleep_seconds", "Time asleep", counts.sleep_s)
        yield CounterMetricFamily("reverie_refused", "Requests for which no place was left", counts.refused)
