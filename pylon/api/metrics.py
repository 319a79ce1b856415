"""What ``/metrics`` tells, in Prometheus' text: what the API has answered, and what the daemon counts.

A registry of our own, for the library's default one is the process's, and a test or a second home would share it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Counts = Callable[[], Mapping[str, float]]
"""What the daemon counts, by name: read at each question. A name that ends with ``_total`` only grows."""

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters of one API. Names carry their unit; amounts are millisatoshi.

    :param counts: of the daemon, each told as ``pylon_<name>``.
    """

    def __init__(self, counts: Counts = dict) -> None:
        # Imported here, as a tenth of a second: whoever serves nothing does not pay for it.
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = CollectorRegistry()
        self.requests = Counter(
            "pylon_api_requests", "Calls answered, by path and HTTP status.", ["path", "status"], registry=self.registry
        )
        self.tokens = Counter("pylon_api_tokens", "Tokens of prompts and of answers.", ["kind"], registry=self.registry)
        self.seconds = Histogram(
            "pylon_api_seconds", "From a completion's call to its end.", buckets=_SECONDS, registry=self.registry
        )
        self.first_seconds = Histogram(
            "pylon_api_first_token_seconds", "From a completion's call to its first words.", buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.running = Gauge("pylon_api_running", "Completions that run now.", registry=self.registry)
        self.streams = Gauge("pylon_api_open_streams", "Streams that are open now.", registry=self.registry)
        self.left = Counter("pylon_api_left", "Completions that their caller has left.", registry=self.registry)
        self._counts = counts
        self.registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """What the daemon counts, for the registry."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        for name, value in self._counts().items():
            family: Any = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            yield family(f"pylon_{name.removesuffix('_total')}", name.replace("_", " "), value=value)

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry need not ask the daemon to know us."""
        return ()

    def text(self) -> bytes:
        from prometheus_client import generate_latest

        return generate_latest(self.registry)
