"""A model behind an HTTP service: a vendor's black box, or one that runs in another program or language.

It is asked in one of the two forms that model servers speak: ``v2``, the Open Inference Protocol (KServe, Triton,
MLServer, TorchServe, OpenVINO), or ``instances``, that of TensorFlow Serving. Nothing beyond Python is needed.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

import numpy as np

from fedkd.errors import FedkdError, SpecError, did_you_mean
from fedkd.learner.black_box import BlackBox, check_scores
from fedkd.softlabels import Array

PROTOCOLS = ("v2", "instances")
TOKEN = "FEDKD_HTTP_TOKEN"
"""The environment variable with a bearer token: a secret has no place in a spec, which is shown in reports."""

NUMBER = 40
"""Bytes that a number of an answer may take, with all that is around it."""


class ServiceError(FedkdError):
    """The service behind a learner does not answer, or not with scores."""


def build(
    classes: int, *, url: str, protocol: str, input: str, output: str, scores: str, batch: int, timeout: float
) -> BlackBox:
    """Return the learner behind ``url``; the options are those of ``http``. Nothing is asked yet."""
    check_scores("http", scores)
    if protocol not in PROTOCOLS:
        hint = did_you_mean(protocol, PROTOCOLS)
        raise SpecError(f"learner 'http': 'protocol' must be {' or '.join(PROTOCOLS)}, got {protocol!r}.{hint}")
    service = Service(url, classes, protocol=protocol, input=input, output=output, batch=batch, timeout=timeout)
    return BlackBox(service, scores, service.place)


class Service:
    """The scores (n, C) float32 that the service at ``url`` gives inputs (n, ...), asked ``batch`` by ``batch``."""

    def __init__(
        self, url: str, classes: int, *, protocol: str, input: str, output: str, batch: int, timeout: float
    ) -> None:
        """Raise :class:`SpecError` unless ``url`` is a whole http or https address without a password."""
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SpecError(f"learner 'http': 'url' must be a whole http:// or https:// address, got {url!r}.")
        if parts.username or parts.password:
            raise SpecError(f"learner 'http': a secret has no place in 'url', which is shown; set {TOKEN} instead.")
        self.url, self.classes, self.protocol, self.batch, self.timeout = url, classes, protocol, batch, timeout
        self.input, self.output = input, output
        self.place = f"{parts.scheme}://{parts.netloc}{parts.path}"  # a query may hold what is nobody's business

    def __repr__(self) -> str:
        """Name the service: two clients that ask the same one have nothing to average."""
        return f"http({self.place!r})"

    def __call__(self, x: Array) -> Array:
        """Return scores (n, C) of inputs (n, ...) or raise :class:`ServiceError`."""
        found = np.zeros((len(x), self.classes), np.float32)
        for start in range(0, len(x), self.batch):
            part = np.asarray(x[start : start + self.batch], np.float32)
            found[start : start + len(part)] = self._rows(self._post(self._question(part), len(part)), len(part))
        return found

    def _question(self, x: Array) -> dict[str, Any]:
        if self.protocol == "instances":
            return {"instances": x.tolist()}
        tensor = {"name": self.input, "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}
        return {"inputs": [tensor], **({"outputs": [{"name": self.output}]} if self.output else {})}

    def _post(self, question: dict[str, Any], count: int) -> Any:
        headers = {"content-type": "application/json", "accept": "application/json"}
        if token := os.environ.get(TOKEN):
            headers["authorization"] = f"Bearer {token}"
        request = urllib.request.Request(self.url, json.dumps(question).encode(), headers)
        most = NUMBER * (count * self.classes + 1000)
        try:
            with _OPENER.open(request, timeout=self.timeout) as answer:
                body = answer.read(most + 1)
        except urllib.error.HTTPError as error:
            error.close()
            raise ServiceError(f"{self.place} answers {error.code} {error.reason}") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise ServiceError(f"{self.place} does not answer: {reason or type(error).__name__}") from None
        if len(body) > most:
            raise ServiceError(f"{self.place} answers with more than {most} bytes for {count} inputs")
        try:
            return json.loads(body)
        except ValueError:
            raise ServiceError(f"{self.place} answers with something that is no JSON") from None

    def _rows(self, answer: Any, count: int) -> Array:
        try:
            rows = np.asarray(self._scores(answer), np.float32)
            right = math.prod(rows.shape) == count * self.classes and (rows.ndim == 1 or len(rows) == count)
        except (KeyError, IndexError, TypeError, ValueError):
            raise ServiceError(f"{self.place} does not answer as protocol={self.protocol!r} says") from None
        if not right:
            raise ServiceError(f"{self.place} must give {count} x {self.classes} scores, got shape {rows.shape}")
        if not np.isfinite(rows).all():
            raise ServiceError(f"{self.place} gives scores that are not finite")
        return rows.reshape(count, self.classes)

    def _scores(self, answer: Any) -> Any:
        """Return the scores in an answer; raise one of the errors of looking into a thing that is another."""
        if self.protocol == "instances":
            rows = answer["predictions"]
            return [row[self.output] for row in rows] if self.output else rows
        outputs = answer["outputs"]
        named = {one["name"]: one for one in outputs}
        return (named[self.output] if self.output else outputs[-1])["data"]


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirection: inputs go to the address that was named, and to no other."""

    def redirect_request(self, *args: Any, **options: Any) -> None:
        """Return nothing: the answer stays an error."""


_OPENER = urllib.request.build_opener(_Stay)
