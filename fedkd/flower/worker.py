"""A process that runs a Flower ClientApp for :class:`fedkd.flower.grid.LocalGrid`: messages in, replies out.

Started by path and file descriptor, never by pickling a function, so the user's main module is not imported again.
The *template* imports everything once and then forks one worker for each connection it is handed: the import of
torch is paid once, and its pages are shared. Where forking is unsafe (macOS), every worker imports for itself.

Frames on a worker's connection, each length-prefixed: the worker says its process id when it is ready. Then comes
for each message: metadata, content, context, state; and back go reply and state. All are protobuf of Flower's own.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import Any

from flwr.app import Context, Error, Message
from flwr.common.constant import ErrorCode
from flwr.common.serde import (
    context_from_proto,
    message_from_proto,
    message_to_proto,
    recorddict_from_proto,
    recorddict_to_proto,
)
from flwr.proto.message_pb2 import Context as ProtoContext
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.supercore.task_identity import TaskIdentity

App = Callable[[Message, Context], Message]


def main(descriptor: int) -> None:
    """Read the setup (JSON) from the connection at ``descriptor``; be a template or a single worker, as it says."""
    connection = Connection(descriptor)
    try:
        setup = json.loads(connection.recv_bytes())
        app = load(setup["app"], setup["preload"])
        if setup["fork"]:
            breed(connection, app, setup["run_config"])
        else:
            work(connection, app, setup["run_config"])
    except (EOFError, OSError):
        pass  # the grid was closed, or its process ended


def load(reference: str, preload: Sequence[str]) -> App:
    """Import ``"module:attribute"`` and, before it, those modules of ``preload`` that are installed.

    A ClientApp that cannot be imported becomes one that answers every message with Flower's load error.
    """
    for name in preload:
        try:
            importlib.import_module(name)
        except ImportError:
            traceback.print_exc()
    module, _, attribute = reference.partition(":")
    try:
        app: App = getattr(importlib.import_module(module), attribute)
        return app
    except Exception as error:
        traceback.print_exc()
        # No data has been read so far, so the text of this exception may be told.
        failure = Error(ErrorCode.LOAD_CLIENT_APP_EXCEPTION, f"{reference}: {type(error).__name__}: {error}")
        return lambda message, _context: Message(failure, reply_to=message)


def breed(control: Connection, app: App, run_config: dict[str, Any]) -> None:
    """Fork a worker for every connection that arrives on ``control``; at its end, end them all."""
    children: set[int] = set()

    def bury(*_: object) -> None:
        for pid in list(children):
            # Look first and reap last: as long as a child is not reaped, its number cannot belong to another process.
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                _kill_group(pid)  # what a dead worker had started itself
                os.waitpid(pid, 0)
                children.discard(pid)

    gc.collect()
    gc.freeze()  # a collection in a child must not touch, and so copy, the pages that it shares
    signal.signal(signal.SIGCHLD, bury)
    try:
        while True:
            control.recv_bytes()
            descriptor = recv_handle(control)
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # until the child is in the book
            pid = os.fork()
            if pid == 0:
                _become_worker(control, descriptor, app, run_config)
            children.add(pid)
            os.close(descriptor)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for pid in children:
            _kill_group(pid)
            os.kill(pid, signal.SIGKILL)  # it may not lead its group yet
            os.waitpid(pid, 0)


def _become_worker(control: Connection, descriptor: int, app: App, run_config: dict[str, Any]) -> None:
    """Turn a fresh fork into a worker; never return into the template's own code."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        os.setsid()
        control.close()
        work(Connection(descriptor), app, run_config)
    except (EOFError, OSError):
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def work(connection: Connection, app: App, run_config: dict[str, Any]) -> None:
    """Answer messages until the other end closes; end at once, even inside the app, if its process dies."""
    threading.Thread(target=_end_with, args=(connection.fileno(),), daemon=True).start()
    connection.send_bytes(str(os.getpid()).encode())
    while True:
        frames = [connection.recv_bytes() for _ in range(4)]
        reply, state = answer(app, run_config, *frames)
        del frames
        connection.send_bytes(reply)
        connection.send_bytes(state)


def answer(
    app: App, run_config: dict[str, Any], metadata: bytes, content: bytes, node: bytes, state: bytes
) -> tuple[bytes, bytes]:
    """Return the reply of the app and the state that its node keeps, both serialized."""
    proto = ProtoMessage.FromString(metadata)
    proto.MergeFromString(content)
    message = message_from_proto(proto)
    context = context_from_proto(ProtoContext.FromString(node))
    context.state = recorddict_from_proto(ProtoRecordDict.FromString(state))
    context.run_config = dict(run_config)
    TaskIdentity.task_id = TaskIdentity.run_id = context.run_id
    TaskIdentity.node_id = context.node_id
    message_id = message.metadata.message_id
    try:
        reply = app(message, context)
        if not isinstance(reply, Message) or reply.metadata.reply_to_message_id != message_id:
            raise TypeError(f"a ClientApp must return a Message that replies to the one it got, got {reply!r}")
        return message_to_proto(reply).SerializeToString(), recorddict_to_proto(context.state).SerializeToString()
    except Exception as error:
        traceback.print_exc()
        # Only the type leaves: the text of an exception may quote private data.
        failure = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, type(error).__name__), reply_to=message)
        return message_to_proto(failure).SerializeToString(), state


def _end_with(descriptor: int) -> None:
    """Wait until the other end of the connection is gone, then end this process and what it has started."""
    watch = select.poll()
    watch.register(descriptor, 0)  # nothing but hang-up and error is reported
    watch.poll()
    _kill_group(os.getpid())


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
        os.killpg(pid, signal.SIGKILL)
