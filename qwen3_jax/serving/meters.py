"""Prometheus metrics, served at /metrics. TTFT and TPOT are histograms, the rest counters and gauges."""

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from qwen3_jax.serving.replies import Reply
from qwen3_jax.serving.worker import Worker

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000)
_FRACTIONS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Meters:
    """The counters of one server."""

    def __init__(self, worker: Worker):
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(worker))

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, buckets=buckets, registry=self._registry)

        self._requests = Counter("qwen3_requests", "HTTP requests", ["path", "status"], registry=self._registry)
        self._generated = Counter("qwen3_generated_tokens", "tokens of finished answers", registry=self._registry)
        self._thinking = Counter("qwen3_reasoning_tokens", "thinking tokens of these", registry=self._registry)
        self._read = Counter("qwen3_read_tokens", "tokens of embedded and ranked texts", registry=self._registry)
        self._ttft = histogram("qwen3_time_to_first_token_seconds", "time to the first token", _SECONDS)
        self._tpot = histogram("qwen3_time_per_output_token_seconds", "time of each further token", _FRACTIONS)
        self._whole = histogram("qwen3_request_seconds", "time of a whole request", _SECONDS)

    def request(self, path: str, status: int) -> None:
        """Count an HTTP request; status 0: its client disconnected before there was one."""
        self._requests.labels(path, status or "gone").inc()

    def count(self, reply: Reply) -> None:
        """Count the finished answers of a request."""
        now = time.perf_counter()
        usages = [answer.usage for answer in reply.answers]
        self._generated.inc(sum(usage.completion_tokens for usage in usages))
        self._thinking.inc(sum(usage.thinking_tokens for usage in usages))
        self._whole.observe(now - reply.started)
        if reply.first is not None:
            self._ttft.observe(reply.first - reply.started)
            further = max(usage.completion_tokens for usage in usages) - 1
            if further > 0:
                self._tpot.observe((now - reply.first) / further)

    def count_read(self, tokens: int) -> None:
        """Count the tokens of a request for embeddings or relevance."""
        self._read.inc(tokens)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    """Reads the engine's counters on every scrape."""

    def __init__(self, worker: Worker):
        self._worker = worker

    def collect(self) -> Iterator[Metric]:
        load = self._worker.load
        stats = load.stats
        yield GaugeMetricFamily("qwen3_answers_running", "answers being generated", load.running)
        yield GaugeMetricFamily("qwen3_answers_waiting", "queued answers", load.waiting)
        yield GaugeMetricFamily("qwen3_cache_pages_held", "cache pages held by answers", load.pages_held)
        yield GaugeMetricFamily("qwen3_cache_pages_all", "cache pages in all", load.pages)
        for name, text, value in (
            ("prompt_tokens", "prompt tokens computed", stats.prefill_tokens),
            ("cached_tokens", "prompt tokens read from the prefix cache", stats.cached_tokens),
            ("guessed_tokens", "tokens proposed by speculation", stats.guessed),
            ("accepted_tokens", "proposed tokens that were accepted", stats.accepted),
            ("preemptions", "preempted answers", stats.preemptions),
        ):
            yield CounterMetricFamily(f"qwen3_{name}", text, value)
