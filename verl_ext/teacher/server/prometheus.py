"""The managed teacher's metrics for Prometheus: the supervisor's own and the engine's, in one text."""

import os
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from verl_ext.teacher.server.supervisor import Supervisor


class TeacherCollector(Collector):
    """Asks supervisor and server anew at every scrape."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def collect(self) -> Iterator[Metric]:
        status = self._supervisor.status()
        yield GaugeMetricFamily(
            "teacher_up", "1 while the server answers log-prob requests", float(status.state == "up")
        )
        yield CounterMetricFamily("teacher_restarts", "Times the server was started again", status.restarts)
        yield GaugeMetricFamily("teacher_uptime_seconds", "Seconds since this server first answered", status.uptime_s)
        yield GaugeMetricFamily("teacher_probe_seconds", "Seconds the last answered probe took", status.probe_s)
        yield from text_string_to_metric_families(self._supervisor.server.metrics_text())

    def describe(self) -> list[Metric]:
        return []  # else registering would already ask a server that is not there yet


class MetricsServer:
    """Answers `GET /metrics` on `teacher.host` and `teacher.metrics_port` until `close`, without a key."""

    def __init__(self, supervisor: Supervisor) -> None:
        """Raises ValueError if the port is taken."""
        config = supervisor.server.config
        registry = CollectorRegistry()
        registry.register(TeacherCollector(supervisor))
        try:
            self._http, self._thread = start_http_server(config.metrics_port, config.host, registry)
        except OSError as error:
            raise ValueError(
                f"teacher.metrics_port: cannot listen on {config.host}:{config.metrics_port} "
                f"({os.strerror(error.errno or 0)}); use another, or 0"
            ) from error
        self.url = f"http://{supervisor.server.host}:{self._http.server_port}/metrics"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
