"""What a server asks of its SuperLink while nodes join: register a key, take it back, who is there.

Flower's public way is ``flwr supernode register``, a program that takes seconds of CPU to start, for each device that
joins. This is the client that it uses inside: milliseconds a call. It is no public interface of Flower's, so a test
starts a real SuperLink and calls all of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True)
class Control:
    """The Control API of the SuperLink at ``address``, over TLS if there is a ``ca``. Any thread may call it."""

    address: str
    ca: Path | None = None

    def register(self, key: bytes, name: str) -> str:
        """Register the public key (PEM) and return its node id; the same again for a key that is known."""
        try:
            with self._client() as client:
                return str(client.RegisterNode(RegisterNodeRequest(public_key=key, name=name)).node_id)
        except httpx.HTTPError as error:
            known = self.nodes().get(key)
            if known is None:
                raise FedkdError(f"the SuperLink does not register {name!r}: {_said(error)}") from None
            return known

    def unregister(self, node_id: str) -> None:
        """Take a node back; one that is not known is left alone."""
        if node_id in self.nodes().values():
            try:
                with self._client() as client:
                    client.UnregisterNode(UnregisterNodeRequest(node_id=int(node_id)))
            except httpx.HTTPError as error:
                raise FedkdError(f"the SuperLink does not unregister {node_id}: {_said(error)}") from None

    def nodes(self) -> dict[bytes, str]:
        """Return the node ids of all registered public keys."""
        try:
            with self._client() as client:
                found = client.ListNodes(ListNodesRequest()).nodes_info
        except httpx.HTTPError as error:
            raise FedkdError(f"the SuperLink does not list its nodes: {_said(error)}") from None
        return {bytes(node.public_key): str(node.node_id) for node in found if not node.unregistered_at}

    def starting(self, run: str) -> tuple[str, bool]:
        """Return when Flower last began to start the ServerApp of a run (empty: not yet), and whether it runs now."""
        try:
            with self._client() as client:
                found = client.ListRuns(ListRunsRequest(run_id=int(run))).run_dict[int(run)]
        except httpx.HTTPError as error:
            raise FedkdError(f"the SuperLink does not say how its run is: {_said(error)}") from None
        return found.starting_at, found.status.status not in ("pending", "starting")

    def stop_runs(self) -> int:
        """Stop all runs that have not ended and return how many: what an earlier server left in its database."""
        try:
            with self._client() as client:
                runs = client.ListRuns(ListRunsRequest()).run_dict
                left = [run_id for run_id, run in runs.items() if run.status.status != "finished"]
                for run_id in left:
                    client.StopRun(StopRunRequest(run_id=run_id))
        except httpx.HTTPError as error:
            raise FedkdError(f"the SuperLink does not end an earlier run: {_said(error)}") from None
        return len(left)

    @contextlib.contextmanager
    def _client(self) -> Iterator[ControlHttpClient]:
        """Connect for one call: a SuperLink closes what is silent for 5 s, and a call on that would be lost."""
        client = ControlHttpClient.from_server_address(
            self.address, self.ca is None, None if self.ca is None else self.ca.read_bytes(), interceptors=()
        )
        with contextlib.closing(client):
            yield client


def _said(error: httpx.HTTPError) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return f"HTTP {error.response.status_code} {error.response.text[:200]}".strip()
    return type(error).__name__
