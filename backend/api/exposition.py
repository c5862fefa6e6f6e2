"""The numbers of `backend.store.queries.metrics` in Prometheus's text format. Read fresh at every scrape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from backend.store.queries.metrics import Metrics, read_metrics
from backend.store.session import Store


def exposition(store: Store) -> bytes:
    """One consistent look at the store.

    Raises:
        StoreUnavailable: the database cannot be reached.
    """
    with store.read() as connection:
        metrics = read_metrics(connection)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(metrics))
    return generate_latest(registry)


class _Once(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics

    def collect(self) -> Iterator[Metric]:
        m = self.metrics
        yield _labelled("zoograft_jobs", "Jobs by state", "state", m.jobs)
        yield _labelled("zoograft_queue_depth", "Queued jobs by queue", "queue", m.queue_depth)
        yield _labelled("zoograft_running", "Active jobs by kind", "kind", m.running)
        losses = CounterMetricFamily("zoograft_attempts_lost", "Attempts without a result by cause", labels=["cause"])
        for cause, count in m.losses.items():
            losses.add_metric([cause], count)
        yield losses
        yield CounterMetricFamily("zoograft_attempts", "Attempts begun", value=m.attempts)
        single = {
            "oldest_queued_seconds": ("Age of the oldest queued job", m.oldest_queued_s),
            "oldest_heartbeat_seconds": ("Age of the stalest worker's announcement", m.oldest_heartbeat_s),
            "expired_leases": ("Active jobs whose lease has run out", m.expired_leases),
            "workers": ("Supervisors seen lately", m.workers),
            "images_per_second": ("Of the newest scan", m.images_per_s),
        }
        for name, (text, value) in single.items():
            if value is not None:
                yield GaugeMetricFamily(f"zoograft_{name}", text, value=value)


def _labelled(name: str, text: str, label: str, counts: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family
