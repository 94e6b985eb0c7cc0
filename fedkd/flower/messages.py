"""Flower messages to frames and back: our records (:mod:`fedkd.envelope`) as Flower's own."""

from __future__ import annotations

from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from fedkd import envelope
from fedkd.client import Answer
from fedkd.envelope import BESIDE, QUERY, STYPE, Records
from fedkd.errors import CodecError

__all__ = ["QUERY", "answer_content", "error_content", "query_content", "read_answer", "read_query", "size_of"]


def query_content(frame: bytes, acknowledged: int = 0) -> RecordDict:
    """Return the records that ask for a release; see :func:`fedkd.envelope.query_records`."""
    return _as_flower(envelope.query_records(frame, acknowledged))


def read_query(message: Message) -> tuple[bytes, int]:
    """Return the frame of a query and the acknowledged round; raise :class:`CodecError` if there is no frame."""
    return envelope.read_query_records(_as_plain(message.content))


def answer_content(answer: Answer) -> RecordDict:
    """Return the records of an answer, a fresh salt among them; see :func:`fedkd.envelope.answer_records`."""
    return _as_flower(envelope.answer_records(answer))


def error_content(client: int | str, error: str) -> RecordDict:
    """Return the records that say why client ``client`` does not answer."""
    return _as_flower(envelope.refusal_records(client, error))


def read_answer(content: RecordDict) -> tuple[bytes | None, float | None, str | None, str | None]:
    """Return ``(frame, accuracy, client, error)`` of an answer: a frame, or a client that refused and why."""
    return envelope.read_answer_records(_as_plain(content))


def size_of(content: RecordDict) -> int:
    """Return the bytes of ``content`` as Flower serializes it: every object, its envelope included, once."""
    return sum(len(part.deflate()) for part in get_all_nested_objects(content).values())


def _as_flower(records: Records) -> RecordDict:
    """Return ``records`` as Flower's; a large frame goes beside them, since Flower cuts arrays into pieces."""
    made: dict[str, ArrayRecord | MetricRecord | ConfigRecord] = {}
    for name, values in records.items():
        frame = values.get("frame")
        if isinstance(frame, bytes) and len(frame) > envelope.LARGE:
            values = {key: value for key, value in values.items() if key != "frame"}
            made[BESIDE] = ArrayRecord({BESIDE: FlowerArray("uint8", (len(frame),), STYPE, frame)})
        made[name] = ConfigRecord(dict(values))
    return RecordDict(made)


def _as_plain(content: RecordDict) -> dict[str, dict[str, object]]:
    """Return the plain records of ``content``, with a frame that lies beside them in its place."""
    found: dict[str, dict[str, object]] = {name: dict(record) for name, record in content.config_records.items()}
    beside = content.array_records.get(BESIDE)
    if beside is not None and BESIDE in beside:
        array = beside[BESIDE]
        if array.stype != STYPE or len(array.data) > envelope.MAX_FRAME:
            raise CodecError(f"what lies beside is not a fedkd frame of at most {envelope.MAX_FRAME} bytes")
        for name in ("query", "release"):
            if name in found:
                found[name].setdefault("frame", array.data)
    return found
