"""What a message holds: records of plain values, by name. The one place that knows their names, whoever carries them.

A *query* is ``{"query": {"frame", "acknowledged"?}}``, an answer ``{"release": {"frame", "salt", "accuracy"?}}``, a
refusal ``{"refusal": {"client", "error"}}``. Few records, because each is an object of Flower's and so a request of its
own. A frame above ``LARGE`` bytes travels beside its record, in an object that Flower sends in pieces.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from fedkd.client import Answer
from fedkd.errors import CodecError

Value = int | float | str | bytes
Records = dict[str, dict[str, Value]]

QUERY = "query.release"
"""Flower's type of all our messages."""
STYPE = "fedkd.frame"
BESIDE = "frame"
"""Name of a large frame's own record, and of the array in it."""
LARGE = 4 * 1024 * 1024
MAX_FRAME = 512 * 1024 * 1024
SALT = 16
MAX_ERROR = 500


def query_records(frame: bytes, acknowledged: int = 0) -> Records:
    """Return what asks for a release.

    ``acknowledged`` is the round of this client's last release that the server has, 0 if none: deltas start from it.
    """
    return {"query": {"frame": frame, **({"acknowledged": acknowledged} if acknowledged else {})}}


def answer_records(answer: Answer) -> Records:
    """Return what answers. Accuracy goes along only where the run allows it; timings never do.

    The salt says nothing. Flower names objects by their content and takes none twice, so without it a node could find
    out whether another one has given the same answer as it would give itself.
    """
    told = {} if answer.accuracy is None else {"accuracy": answer.accuracy}
    return {"release": {"frame": answer.frame, "salt": secrets.token_bytes(SALT), **told}}


def refusal_records(client: int | str, error: str) -> Records:
    """Return what says why ``client`` does not answer."""
    return {"refusal": {"client": str(client), "error": error[:MAX_ERROR]}}


def read_query_records(records: Mapping[str, Mapping[str, object]]) -> tuple[bytes, int]:
    """Return the frame of a query and the acknowledged round; raise :class:`CodecError` if there is no frame."""
    known = records.get("query", {}).get("acknowledged", 0)
    return _frame(records, "query"), known if isinstance(known, int) and known > 0 else 0


def read_answer_records(
    records: Mapping[str, Mapping[str, object]],
) -> tuple[bytes | None, float | None, str | None, str | None]:
    """Return ``(frame, accuracy, client, error)`` of an answer: a frame, or a client that refused and why."""
    refusal = records.get("refusal")
    if refusal is not None:
        error = str(refusal.get("error", "no reason given"))
        return None, None, str(refusal.get("client", "?"))[:40], error[:MAX_ERROR]
    accuracy = records.get("release", {}).get("accuracy")
    if not (isinstance(accuracy, float) and 0 <= accuracy <= 1):
        accuracy = None  # a client may claim anything, also NaN
    return _frame(records, "release"), accuracy, None, None


def _frame(records: Mapping[str, Mapping[str, object]], name: str) -> bytes:
    frame = records.get(name, {}).get("frame")
    if not isinstance(frame, bytes):
        raise CodecError(f"message without a {name} frame")
    if len(frame) > MAX_FRAME:
        raise CodecError(f"{name} is not a fedkd frame of at most {MAX_FRAME} bytes")
    return frame
