"""What ``/metrics`` tells, in Prometheus' text: what the API has answered, and what the daemon counts.

A registry of our own, for the library's default one is the process's, and a test or a second home would share it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Counts = Callable[[], Mapping[str, float]]
"""What the daemon counts, by name: read at each question. A name that ends with ``_total`` only grows."""


class EventTally(Protocol):
    """What the home's events add up to (``pylon.daemon.events.Tally``)."""

    @property
    def kinds(self) -> Mapping[str, int]: ...

    @property
    def states(self) -> Mapping[tuple[str, str], int]: ...

    @property
    def msats(self) -> Mapping[tuple[str, str], int]: ...


_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters of one API. Names carry their unit; amounts are millisatoshi.

    :param counts: of the daemon, each told as ``pylon_<name>``.
    :param tally: of the events since the daemon was started.
    """

    def __init__(self, counts: Counts = dict, tally: EventTally | None = None) -> None:
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
        self._tally = tally
        self.registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """What the daemon counts, for the registry."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        for name, value in self._counts().items():
            family: Any = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            yield family(f"pylon_{name.removesuffix('_total')}", name.replace("_", " "), value=value)
        if self._tally is not None:
            events = CounterMetricFamily("pylon_events", "Events since the start, by kind.", labels=["kind"])
            for kind, count in self._tally.kinds.items():
                events.add_metric([kind], count)
            moved = CounterMetricFamily(
                "pylon_entered", "States that were entered since the start.", labels=["of", "state"]
            )
            for labels, count in self._tally.states.items():
                moved.add_metric(labels, count)
            amounts = CounterMetricFamily(
                "pylon_booked_msats",
                "What was booked since the start: sent, received, fees.",
                labels=["direction", "purpose"],
            )
            for labels, amount in self._tally.msats.items():
                amounts.add_metric(labels, amount)
            yield from (events, moved, amounts)

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry need not ask the daemon to know us."""
        return ()

    def text(self) -> bytes:
        from prometheus_client import generate_latest

        return generate_latest(self.registry)
