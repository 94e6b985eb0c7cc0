"""Runs in other people's tools: every round's figures to TensorBoard or MLflow, as their own libraries write them.

Both are written from the run directory, after the run or along with it. What was published is not published twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from fedkd.errors import DataError, ExtraError, FedkdError
from fedkd.figures import figures
from fedkd.journal import Run, part, read_run
from fedkd.logs import one_line
from fedkd.report import write_report
from fedkd.status import STATUS, read_status
from fedkd.units import plain

LOOK = 1.0
"""Seconds between two looks at a run that is followed."""
SUFFIX = ".fedkd"
"""Ends the names of TensorBoard files that are ours."""
EXPERIMENT = "fedkd"
IDENTITY, PUBLISHED = "fedkd.run", "fedkd.published"
"""Tags of an MLflow run: which run directory it shows, and up to which round."""
BATCH = 100
"""Parameters that MLflow takes in one request."""


class Sink(Protocol):
    """Where figures go. A context manager: whatever it holds is released, also after an error."""

    def __enter__(self) -> Self:
        """Return this."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release what is held."""
        ...

    def settings(self, run: Run) -> int:
        """Take the configuration of ``run``; return the last round that is there already, 0 if none."""
        ...

    def round(self, number: int, values: Mapping[str, float]) -> None:
        """Take the figures of round ``number``."""
        ...

    def end(self, report: Path, *, failed: bool) -> None:
        """Take the finished run's ``report``."""
        ...


class TensorBoard:
    """Event files below ``folder``, in a sub-folder with the run's name. TensorFlow is not needed."""

    def __init__(self, folder: Path, name: str) -> None:
        """Begin anew: event files of ours that show this run already are replaced."""
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError:
            raise ExtraError("--tensorboard", "tensorboard", "monitor") from None
        self._event, self._summary, self._tensor = event_pb2.Event, summary_pb2, tensor_pb2.TensorProto
        self._string = types_pb2.DT_STRING
        target = folder / name
        try:
            target.mkdir(parents=True, exist_ok=True)
            for old in target.glob(f"events.out.tfevents.*{SUFFIX}"):
                old.unlink()
            self._writer = EventFileWriter(str(target), filename_suffix=SUFFIX)
        except OSError as error:
            raise FedkdError(f"cannot write {target}: {error.strerror}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def settings(self, run: Run) -> int:
        """Write the configuration as a table of the text page."""
        rows = [f"| {key} | `{value}` |" for key, value in parameters(run).items()]
        text = "\n".join(["| setting | value |", "|---|---|", *rows])
        about = self._summary.SummaryMetadata(
            plugin_data=self._summary.SummaryMetadata.PluginData(plugin_name="text"), summary_description=""
        )
        content = self._tensor(dtype=self._string, string_val=[text.encode()])
        content.tensor_shape.dim.add(size=1)
        self._add(0, [self._summary.Summary.Value(tag="settings", metadata=about, tensor=content)])
        return 0

    def round(self, number: int, values: Mapping[str, float]) -> None:
        """Write one scalar for each figure, at step ``number``."""
        self._add(number, [self._summary.Summary.Value(tag=tag, simple_value=one) for tag, one in values.items()])

    def end(self, report: Path, *, failed: bool) -> None:
        """Write nothing: TensorBoard shows no pages."""

    def _add(self, step: int, values: Sequence[Any]) -> None:
        summary = self._summary.Summary(value=values)
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=summary))
        self._writer.flush()


class MLflow:
    """A run of the experiment ``fedkd`` on the tracking server at ``uri`` (``http://...``, ``sqlite:///...``)."""

    def __init__(self, uri: str, name: str) -> None:
        """Reach the server; publish under ``name``."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing leaves this machine unless asked
        try:
            from mlflow.entities import Metric, Param
            from mlflow.exceptions import MlflowException
            from mlflow.tracking import MlflowClient
        except ImportError:
            raise ExtraError("--mlflow", "mlflow-skinny", "monitor") from None
        self._metric, self._param, self._exception, self._name = Metric, Param, MlflowException, name
        self._where = without_password(uri)
        with self._reached():
            self._client = MlflowClient(tracking_uri=uri)
            found = self._client.get_experiment_by_name(EXPERIMENT)
            self._experiment = found.experiment_id if found else self._client.create_experiment(EXPERIMENT)
        self._run = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Hold nothing: what was published is there, and the next call goes on after it."""

    def settings(self, run: Run) -> int:
        """Find the run or make it, with the configuration as parameters; return the last round published."""
        whose = identity(run)
        with self._reached():
            found = self._client.search_runs([self._experiment], f"tags.`{IDENTITY}` = '{whose}'", max_results=1)
            if found:
                self._run = found[0].info.run_id
                self._client.update_run(self._run, status="RUNNING")
                return int(found[0].data.tags.get(PUBLISHED, 0))
            tags = {IDENTITY: whose, "mlflow.runName": self._name}
            self._run = self._client.create_run(self._experiment, tags=tags).info.run_id
            named = [self._param(key, value[:500]) for key, value in parameters(run).items()]
            for first in range(0, len(named), BATCH):
                self._client.log_batch(self._run, params=named[first : first + BATCH])
        return 0

    def round(self, number: int, values: Mapping[str, float]) -> None:
        """Log the figures at step ``number``, and that they are there."""
        now = int(1000 * time.time())
        with self._reached():
            self._client.log_batch(
                self._run, metrics=[self._metric(tag, one, now, number) for tag, one in values.items()]
            )
            self._client.set_tag(self._run, PUBLISHED, number)

    def end(self, report: Path, *, failed: bool) -> None:
        """Attach the report and close the run."""
        with self._reached():
            self._client.log_artifact(self._run, str(report))
            self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except (self._exception, OSError) as error:
            raise FedkdError(f"MLflow at {self._where} does not take this: {one_line(str(error))}") from None


def without_password(uri: str) -> str:
    """Return ``uri`` without the user and the password in it, so that it can be shown."""
    return re.sub(r"^([\w+.-]+://)[^/@]*@", r"\1", uri)


def parameters(run: Run) -> dict[str, str]:
    """Return the configuration of a run by key, and what it says of its privacy and where it comes from."""
    told = {f"privacy.{key}": part(run.summary, "privacy").get(key) for key in ("guarantee", "unit", "neighbors")}
    known = {key: value for key, value in told.items() if value is not None}
    return {key: one_line(plain(value)) for key, value in {**run.config, **known}.items() if value != ""}


def identity(run: Run) -> str:
    """Return what tells a run from others of its name: one that was begun anew with other settings is another."""
    text = run.config_text or repr(sorted(run.config.items()))
    return f"{one_line(run.name).replace(chr(39), '')} {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def publish(
    path: Path, sinks: Sequence[Sink], *, follow: bool = False, pause: Callable[[float], None] = time.sleep
) -> int:
    """Bring the finished rounds of the run directory ``path`` to all ``sinks``; return how many there are.

    With ``follow`` go on until the run ends. Raises :class:`DataError` if no round is finished and none is waited for.
    """
    done = [-1] * len(sinks)  # -1: has not heard of the run
    while True:
        ended, failed = _state(path)  # before the rounds are read: then none can be missed
        if (run := _rounds(path, must=not follow or ended)) is not None:
            for i, sink in enumerate(sinks):
                done[i] = _bring(run, sink, done[i])
            if ended or not follow:
                if ended:
                    report = write_report(path)
                    for sink in sinks:
                        sink.end(report, failed=failed)
                return len(run.rounds)
        pause(LOOK)


def _bring(run: Run, sink: Sink, done: int) -> int:
    last = sink.settings(run) if done < 0 else done
    for report in run.rounds:
        if report.round > last:
            sink.round(report.round, figures(run, report))
    return max(last, run.rounds[-1].round)


def _rounds(path: Path, *, must: bool) -> Run | None:
    try:
        return read_run(path)
    except DataError:
        if must or not path.is_dir():
            raise
        return None


def _state(path: Path) -> tuple[bool, bool]:
    """Return whether the run has ended, and whether it failed; one that was killed has."""
    if not (path / STATUS).exists() and path.is_dir():
        with contextlib.suppress(DataError):
            return read_status(path).ended, False
        return False, False
    status = read_status(path)
    killed = status.stale(time.time())
    return status.ended or killed, status.state == "failed" or killed


def open_sinks(name: str, *, tensorboard: Path | None, mlflow: str | None) -> list[Sink]:
    """Return the sinks that were asked for; raise :class:`ExtraError` where a library is missing."""
    sinks: list[Sink] = []
    if mlflow is not None:  # first: it may refuse, and TensorBoard's files are replaced at once
        sinks.append(MLflow(mlflow, name))
    if tensorboard is not None:
        sinks.append(TensorBoard(tensorboard, name))
    return sinks
