"""What goes to a log, and what does not: events with their numbers, as JSON or as text, nothing that a client holds.

``FEDKD_LOG=json`` or ``text`` (``fedkd --log-format``) writes the logger ``fedkd`` to standard error, a line an event.
The text of a foreign exception may quote private data, so logs say its type and where it was raised, not what it says.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fedkd.errors import ConfigError, DataError, FedkdError, SpecError, did_you_mean

VARIABLE = "FEDKD_LOG"
FORMATS = ("json", "text")
WITHHELD = "(text withheld: it may quote private data)"
LONGEST = 500
"""Letters of a text in a log."""

log = logging.getLogger("fedkd")


def configure(format_: str | None = None) -> None:
    """Send the logger ``fedkd`` to standard error as ``format_`` or else ``FEDKD_LOG`` says; if neither, do nothing.

    Programs that this one starts do the same. Raises :class:`ConfigError` for an unknown format.
    """
    chosen = format_ or os.environ.get(VARIABLE, "")
    if not chosen:
        return
    if chosen not in FORMATS:
        raise ConfigError(f"{VARIABLE} must be json or text, got {chosen!r}.{did_you_mean(chosen, FORMATS)}")
    os.environ[VARIABLE] = chosen
    for handler in [one for one in log.handlers if isinstance(one, _OurHandler)]:
        log.removeHandler(handler)
    handler = _OurHandler(sys.stderr)
    handler.addFilter(Redaction())  # a logger's own filters do not see what its children log
    handler.setFormatter(JsonLines() if chosen == "json" else TextLines())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False  # else Flower's root logger would write each line again


class _OurHandler(logging.StreamHandler[Any]):
    """Tells our handler from those that a user has added."""


class Redaction(logging.Filter):
    """Takes the text of foreign exceptions off every record, whoever handles it; simulations keep theirs.

    A record that was logged with ``extra={"simulated": True}`` is about data that is not private.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact ``record``; let it pass."""
        if isinstance(record.exc_info, tuple) and record.exc_info[1] is not None and not simulated(record):
            record.fault = record.exc_info[1]
            record.exc_text, record.exc_info = redacted(record.exc_info[1]), None
        return True


log.addFilter(Redaction())


def simulated(record: logging.LogRecord) -> bool:
    """Say whether a record is about data that is not private."""
    return bool(getattr(record, "simulated", False))


def redacted(error: BaseException) -> str:
    """Return the traceback of ``error`` and of what caused it, with types and places but without their texts."""
    causes, one = [error], error
    while (following := one.__cause__ or (None if one.__suppress_context__ else one.__context__)) is not None:
        if following in causes:
            break
        causes.append(one := following)
    return "\n\nwhich led to:\n\n".join(_places(one) for one in reversed(causes))


def _places(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f'  File "{one.filename}", line {one.lineno}, in {one.name}' for one in frames]
    return "\n".join(["Traceback (most recent call last):", *lines, f"{type(error).__name__} {WITHHELD}"])


class JsonLines(logging.Formatter):
    """One JSON object a line: ``time`` (UTC), ``level``, ``event`` and its facts; a plain record is event ``log``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return ``record`` as JSON."""
        facts = getattr(record, "facts", None)
        line: dict[str, Any] = {"time": moment(record.created), "level": record.levelname.lower()}
        line |= {"event": "log", "message": _message(record)} if facts is None else {"event": record.msg, **facts}
        fault = getattr(record, "fault", None) or (record.exc_info or (None, None))[1]
        if fault is not None:
            frames = traceback.extract_tb(fault.__traceback__)[-5:]
            line["error"] = type(fault).__name__
            line["at"] = [f"{os.path.basename(one.filename)}:{one.lineno} {one.name}" for one in frames]
        return json.dumps(line, default=str)


class TextLines(logging.Formatter):
    """The same for people: time, level, event, and facts as ``key=value``; a traceback follows on lines of its own."""

    def __init__(self) -> None:
        """Take no options."""
        super().__init__("%(moment)s %(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Return ``record`` as text."""
        record.moment = moment(record.created)
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Add the facts to the event."""
        facts = getattr(record, "facts", None) or {}
        words = [
            f"{key}={value if isinstance(value, int | float) else json.dumps(value)}" for key, value in facts.items()
        ]
        return " ".join([super().formatMessage(record), *words])


def tell(event: str, *, level: int = logging.INFO, **facts: Any) -> None:
    """Log an event with its facts: plain values, nothing private. Costs nothing while nobody listens to events."""
    if log.isEnabledFor(logging.INFO):  # of any level: else Python itself would print "failed" beside our error line
        known = {key: _plain(value) for key, value in facts.items() if value is not None}
        log.log(level, event, extra={"facts": known})


@contextmanager
def telling(run: str) -> Iterator[Callable[[str, Mapping[str, Any]], None]]:
    """Yield an observer that logs a run's events under its name; log how it ended, too."""

    def observe(event: str, facts: Mapping[str, Any]) -> None:
        tell(event, run=run, **_facts(event, facts))

    try:
        yield observe
    except BaseException as error:
        tell("failed", level=logging.ERROR, run=run, reason=reason(error))
        raise
    tell("done", run=run)


def reason(error: BaseException) -> str:
    """Return in one line why a run ended: our own errors in their words, all others by their kind."""
    if isinstance(error, FedkdError):
        return one_line(str(error))
    return "interrupted" if isinstance(error, KeyboardInterrupt) else type(error).__name__


def one_line(text: str) -> str:
    """Return ``text`` on one line that any terminal can show: without control characters, and not too long."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:LONGEST]


def moment(seconds: float) -> str:
    """Return a time since 1970 as UTC: ``"2026-01-31T12:00:00.123Z"``."""
    when = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def seconds_of(text: str | float) -> float:
    """Return the seconds since 1970 of a time as :func:`moment` writes it; raise :class:`ValueError` for another."""
    return text if isinstance(text, int | float) else datetime.datetime.fromisoformat(text).timestamp()


def _facts(event: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is worth a line of an observer's ``facts``; a report is cut down to its figures."""
    if event != "report":
        same = facts.get("client") == facts.get("asked_as")
        return {k: v for k, v in facts.items() if k not in ("sent", "reports") and not (same and k == "asked_as")}
    report = facts["report"]
    return {
        "round": report.round,
        **report.metrics,
        **{f"{key}_seconds": value for key, value in report.seconds.items()},
    }


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float) else one_line(str(value))


def _message(record: logging.LogRecord) -> str:
    """Return the message of a plain record, without what an error says that may quote data or files of a device."""
    if isinstance(record.args, tuple) and any(isinstance(arg, BaseException) for arg in record.args):
        record = logging.makeLogRecord({**vars(record), "args": tuple(map(_by_kind, record.args))})
    return one_line(record.getMessage())


def _by_kind(arg: object) -> object:
    foreign = not isinstance(arg, FedkdError) or isinstance(arg, (DataError, SpecError))
    return type(arg).__name__ if isinstance(arg, BaseException) and foreign else arg
