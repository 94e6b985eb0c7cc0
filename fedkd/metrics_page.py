"""A run's figures for Prometheus: how it is doing (``status.json``) and what its rounds measured (``metrics.jsonl``).

Everything is read from the run directory at each scrape, so the page can be served by the run itself or by anyone else.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedkd.errors import DataError, ExtraError, FedkdError
from fedkd.figures import epsilon_of, spent_after
from fedkd.journal import Run, read_run, real
from fedkd.status import STATUSES, Status, read_status

try:
    from prometheus_client import CollectorRegistry, generate_latest, start_http_server
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
except ImportError:
    raise ExtraError("a page of metrics", "prometheus_client", "monitor") from None

Gate = Mapping[str, float] | Callable[[], Mapping[str, float]]
"""Counts of what a server let in or turned away, by what happened; looked at anew at each scrape."""
MODELS = ("student", "ensemble", "local_mean", "local_best", "local_worst")
STATES = ("starting", "waiting for clients", "asking", "aggregating", "distilling", "scoring", "done", "failed")
BUCKETS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
"""Upper bounds in seconds of how long clients took to answer."""


def page(path: Path, *, gate: Gate | None = None, now: Callable[[], float] = time.time) -> bytes:
    """Return the metrics of the run directory ``path`` in Prometheus' text format."""
    return bytes(generate_latest(registry(path, gate=gate, now=now)))


def registry(path: Path, *, gate: Gate | None = None, now: Callable[[], float] = time.time) -> CollectorRegistry:
    """Return what reads the run anew at each scrape, for those who serve it with ``prometheus_client.make_asgi_app``.

    A run that has not begun yet has ``fedkd_status_known 0`` and no other figures; those of ``gate`` are always there.
    """
    made = CollectorRegistry()
    made.register(_Collector(path, gate, now))
    return made


@contextmanager
def listen(path: Path, port: int, *, gate: Gate | None = None) -> Iterator[int]:
    """Serve the metrics on ``port`` of 127.0.0.1 (0: a free one) from a thread of its own; yield the port."""
    try:
        server, thread = start_http_server(port, addr="127.0.0.1", registry=registry(path, gate=gate))
    except OSError as error:
        raise FedkdError(f"cannot serve metrics on 127.0.0.1:{port}: {error.strerror or error}") from None
    try:
        yield int(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Collector:
    def __init__(self, path: Path, gate: Gate | None, now: Callable[[], float]) -> None:
        self._path, self._gate, self._now = path, gate, now

    def collect(self) -> Iterator[Any]:
        """Yield all metrics as they are now."""
        if self._gate is not None:
            counts = self._gate() if callable(self._gate) else self._gate
            yield _labeled(CounterMetricFamily, "fedkd_gate", "Requests that the gate has seen.", "event", counts)
        try:
            status = read_status(self._path)
        except DataError:
            yield _gauge("fedkd_status_known", "Whether the run says how it is.", 0)
            return
        yield _gauge("fedkd_status_known", "Whether the run says how it is.", 1)
        yield from _of_status(status, self._now())
        try:
            run = read_run(self._path)
        except DataError:  # no round is finished yet
            return
        yield from _of_rounds(run)


def _of_status(status: Status, now: float) -> Iterator[Any]:
    info = GaugeMetricFamily("fedkd_run_info", "Which run this is.", labels=["run", "engine"])
    info.add_metric([status.run, status.engine], 1)
    yield info
    states = {state: float(state == status.state) for state in STATES}
    yield _labeled(GaugeMetricFamily, "fedkd_state", "1 for what the run is doing, 0 for all else.", "state", states)
    yield _gauge("fedkd_stale", "1 if the run claims to be running and has said nothing for long.", status.stale(now))
    yield _gauge("fedkd_started_timestamp_seconds", "When the run began.", status.started)
    yield _gauge("fedkd_updated_timestamp_seconds", "When the run last said anything.", status.updated)
    yield _gauge("fedkd_round", "The round that is on, or was last.", status.round)
    yield _gauge("fedkd_rounds", "How many rounds the run is to have.", status.rounds)
    if (left := status.left(now)) is not None:
        yield _gauge("fedkd_deadline_left_seconds", "Seconds for which clients are still waited for.", left)
    counts = {one: float(status.count(one)) for one in STATUSES}
    yield _labeled(GaugeMetricFamily, "fedkd_clients", "Clients by what they are in.", "status", counts)
    moved = {way: float(status.moved(way)) for way in ("up", "down")}
    yield _labeled(CounterMetricFamily, "fedkd_bytes", "Content of messages, all clients.", "direction", moved)


def _of_rounds(run: Run) -> Iterator[Any]:
    last = run.rounds[-1]
    spent = {stage: value for stage, value in last.seconds.items() if real(value) is not None}
    yield _labeled(GaugeMetricFamily, "fedkd_round_seconds", "Seconds of the last finished round.", "stage", spent)
    scores = {name: score for name in MODELS if (score := run.last(name)) is not None}
    yield _labeled(GaugeMetricFamily, "fedkd_accuracy", "Share that is right, 0 to 1, last round.", "model", scores)
    if (covered := run.last("coverage")) is not None:
        yield _gauge("fedkd_coverage_ratio", "Share of the rows asked that anyone answered, last round.", covered)
    delays = sorted(value for r in run.rounds for one in r.latency.values() if (value := real(one)) is not None)
    histogram = HistogramMetricFamily("fedkd_answer_seconds", "Seconds until clients answered, all finished rounds.")
    histogram.add_metric([], _buckets(delays), sum(delays))
    yield histogram
    told = spent_after(run, last.round)
    labels = ["unit", "neighbors", "delta"]
    epsilon = GaugeMetricFamily(
        "fedkd_epsilon", "Privacy spent so far on each unit; infinite where nothing is promised.", labels=labels
    )
    epsilon.add_metric([str(told.get(key, "")) for key in labels], epsilon_of(told))
    yield epsilon


def _buckets(delays: list[float]) -> list[tuple[str, float]]:
    """Return how many of the sorted ``delays`` lie at or below each bound."""
    below = [bisect_left(delays, math.nextafter(bound, math.inf)) for bound in BUCKETS]
    return [
        *((str(bound), float(count)) for bound, count in zip(BUCKETS, below, strict=True)),
        ("+Inf", float(len(delays))),
    ]


def _gauge(name: str, what: str, value: float) -> Any:
    return GaugeMetricFamily(name, what, value=float(value))


def _labeled(kind: Any, name: str, what: str, label: str, values: Mapping[str, float]) -> Any:
    family = kind(name, what, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
