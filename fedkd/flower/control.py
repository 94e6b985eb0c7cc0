"""What a server asks of its SuperLink while nodes join: register a key, take it back, who is there.

Flower's public way is ``flwr supernode register``, a program that takes seconds of CPU to start, for each device that
joins. This is the client that it uses inside, kept open: milliseconds a call. It is no public interface of Flower's, so
a test starts a real SuperLink and calls all of it.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import httpx
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient

from fedkd.errors import FedkdError


class Control:
    """A connection to the Control API of the SuperLink at ``address``, over TLS if ``ca`` is given."""

    def __init__(self, address: str, ca: Path | None = None) -> None:
        """Open nothing yet."""
        self._client = ControlHttpClient.from_server_address(
            address, ca is None, None if ca is None else ca.read_bytes(), interceptors=()
        )

    def register(self, key: bytes, name: str) -> str:
        """Register the public key (PEM) and return its node id; the same again for a key that is known."""
        try:
            return str(self._client.RegisterNode(RegisterNodeRequest(public_key=key, name=name)).node_id)
        except httpx.HTTPError as error:
            known = self.nodes().get(key)
            if known is None:
                raise FedkdError(f"the SuperLink does not register {name!r}: {_said(error)}") from None
            return known

    def unregister(self, node_id: str) -> None:
        """Take a node back; one that is not known is left alone."""
        if node_id in self.nodes().values():
            try:
                self._client.UnregisterNode(UnregisterNodeRequest(node_id=int(node_id)))
            except httpx.HTTPError as error:
                raise FedkdError(f"the SuperLink does not unregister {node_id}: {_said(error)}") from None

    def nodes(self) -> dict[bytes, str]:
        """Return the node ids of all registered public keys."""
        try:
            found = self._client.ListNodes(ListNodesRequest()).nodes_info
        except httpx.HTTPError as error:
            raise FedkdError(f"the SuperLink does not list its nodes: {_said(error)}") from None
        return {bytes(node.public_key): str(node.node_id) for node in found if not node.unregistered_at}

    def stop_runs(self) -> int:
        """Stop all runs that have not ended and return how many: what an earlier server left in its database."""
        try:
            runs = self._client.ListRuns(ListRunsRequest()).run_dict
            left = [run_id for run_id, run in runs.items() if run.status.status != "finished"]
            for run_id in left:
                self._client.StopRun(StopRunRequest(run_id=run_id))
        except httpx.HTTPError as error:
            raise FedkdError(f"the SuperLink does not end an earlier run: {_said(error)}") from None
        return len(left)

    def __enter__(self) -> Control:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        self._client.close()


def _said(error: httpx.HTTPError) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return f"HTTP {error.response.status_code} {error.response.text[:200]}".strip()
    return type(error).__name__
