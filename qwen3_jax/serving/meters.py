"""What Prometheus reads at /metrics.

| name                                   | kind      | what                                                         |
|----------------------------------------|-----------|--------------------------------------------------------------|
| `qwen3_requests_total{path,status}`     | counter   | HTTP requests                                                |
| `qwen3_answers_running`, `_waiting`     | gauge     | answers that have room, and that have none yet               |
| `qwen3_cache_pages_held`, `_all`        | gauge     | pages of the cache                                           |
| `qwen3_prompt_tokens_total`             | counter   | tokens of prompts that were computed                         |
| `qwen3_cached_tokens_total`             | counter   | tokens of prompts that were found in the cache               |
| `qwen3_generated_tokens_total`          | counter   | tokens of finished answers                                   |
| `qwen3_reasoning_tokens_total`          | counter   | of these, thinking                                           |
| `qwen3_guessed_tokens_total`, `qwen3_accepted_tokens_total` | counter | speculation, and how much of it was right  |
| `qwen3_preemptions_total`               | counter   | answers that had to make room                                |
| `qwen3_time_to_first_token_seconds`     | histogram | TTFT                                                         |
| `qwen3_time_per_output_token_seconds`   | histogram | TPOT: from the first token to the last, per token            |
| `qwen3_request_seconds`                 | histogram | from a request to the end of its last answer                 |
"""

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
        self._registry.register(_OfEngine(worker))

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, buckets=buckets, registry=self._registry)

        self._requests = Counter("qwen3_requests", "HTTP requests", ["path", "status"], registry=self._registry)
        self._generated = Counter("qwen3_generated_tokens", "tokens of finished answers", registry=self._registry)
        self._thinking = Counter("qwen3_reasoning_tokens", "thinking tokens of these", registry=self._registry)
        self._ttft = histogram("qwen3_time_to_first_token_seconds", "time to the first token", _SECONDS)
        self._tpot = histogram("qwen3_time_per_output_token_seconds", "time of each further token", _FRACTIONS)
        self._whole = histogram("qwen3_request_seconds", "time of a whole request", _SECONDS)

    def request(self, path: str, status: int) -> None:
        """A request has ended; the status is 0 where its client left before there was one."""
        self._requests.labels(path, status or "gone").inc()

    def count(self, reply: Reply) -> None:
        """A request's answers are finished."""
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

    def text(self) -> bytes:
        """Everything in Prometheus' text form."""
        return generate_latest(self._registry)


class _OfEngine(Collector):
    """Reads the engine's own numbers when asked."""

    def __init__(self, worker: Worker):
        self._worker = worker

    def collect(self) -> Iterator[Metric]:
        worker, stats = self._worker, self._worker.stats
        held, pages = worker.cache_usage
        yield GaugeMetricFamily("qwen3_answers_running", "answers that have room", worker.running)
        yield GaugeMetricFamily("qwen3_answers_waiting", "answers that have no room yet", worker.waiting)
        yield GaugeMetricFamily("qwen3_cache_pages_held", "pages that answers hold", held)
        yield GaugeMetricFamily("qwen3_cache_pages_all", "pages of the cache", pages)
        for name, text, value in (
            ("prompt_tokens", "tokens of prompts that were computed", stats.prefill_tokens),
            ("cached_tokens", "tokens of prompts that were found in the cache", stats.cached_tokens),
            ("guessed_tokens", "tokens that speculation guessed", stats.guessed),
            ("accepted_tokens", "guessed tokens that were right", stats.accepted),
            ("preemptions", "answers that had to make room", stats.preemptions),
        ):
            yield CounterMetricFamily(f"qwen3_{name}", text, value)
