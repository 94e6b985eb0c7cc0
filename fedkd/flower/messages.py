"""Flower messages to frames and back: the only place that knows record names, keys and message types."""

from __future__ import annotations

from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from fedkd.client import Answer
from fedkd.errors import CodecError

QUERY = "query.release"
STYPE = "fedkd.frame"
MAX_FRAME = 512 * 1024 * 1024


def query_content(frame: bytes, acknowledged: int = 0) -> RecordDict:
    """Return the records that ask for a release.

    ``acknowledged`` is the round of this client's last release that the server has, 0 if none: deltas start from it.
    """
    records: dict[str, ArrayRecord | MetricRecord | ConfigRecord] = {"query": _frame_record(frame)}
    if acknowledged:
        records["acknowledged"] = ConfigRecord({"round": acknowledged})
    return RecordDict(records)


def read_query(message: Message) -> tuple[bytes, int]:
    """Return the frame of a query and the acknowledged round; raise :class:`CodecError` if there is no frame."""
    record = message.content.config_records.get("acknowledged")
    known = None if record is None else record.get("round")
    return _read_frame(message.content, "query"), known if isinstance(known, int) else 0


def answer_content(answer: Answer) -> RecordDict:
    """Return the records of an answer. Accuracy goes along only where the run allows it; timings never do.

    Every record costs about 100 bytes of Flower's, so there is none that says what the frame says: its version.
    """
    records: dict[str, ArrayRecord | MetricRecord | ConfigRecord] = {"release": _frame_record(answer.frame)}
    if answer.accuracy is not None:
        records["metrics"] = MetricRecord({"accuracy": answer.accuracy})
    return RecordDict(records)


def error_content(client: int, error: str) -> RecordDict:
    """Return the records that say why client ``client`` does not answer."""
    return RecordDict({"refusal": ConfigRecord({"client": str(client), "error": error[:500]})})


def read_answer(content: RecordDict) -> tuple[bytes | None, float | None, str | None, str | None]:
    """Return ``(frame, accuracy, client, error)`` of an answer: a frame, or a client that refused and why."""
    refusal = content.config_records.get("refusal")
    if refusal is not None:
        return None, None, str(refusal.get("client", "?"))[:40], str(refusal.get("error", "no reason given"))[:500]
    metrics = content.metric_records.get("metrics")
    accuracy = metrics.get("accuracy") if metrics is not None else None
    if not (isinstance(accuracy, float) and 0 <= accuracy <= 1):
        accuracy = None  # a client may claim anything, also NaN
    return _read_frame(content, "release"), accuracy, None, None


def size_of(content: RecordDict) -> int:
    """Return the bytes of ``content`` as Flower serializes it: every object, its envelope included, once."""
    return sum(len(part.deflate()) for part in get_all_nested_objects(content).values())


def _frame_record(frame: bytes) -> ArrayRecord:
    return ArrayRecord({"frame": FlowerArray("uint8", (len(frame),), STYPE, frame)})


def _read_frame(content: RecordDict, name: str) -> bytes:
    record = content.array_records.get(name)
    if record is None or "frame" not in record:
        raise CodecError(f"message without a {name} frame")
    array = record["frame"]
    if array.stype != STYPE or len(array.data) > MAX_FRAME:
        raise CodecError(f"{name} is not a fedkd frame of at most {MAX_FRAME} bytes")
    return array.data
