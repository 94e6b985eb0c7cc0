"""A ClientApp in which most clients fail, each in its own way. For test_engines.py; runs in worker processes."""

import os
import threading

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedkd.flower.apps import answer_query
from fedkd.site import client_key

client = ClientApp()


@client.query("release")
def release(message: Message, context: Context) -> Message:
    """Answer, unless this is client 0 (raises), 1 (dies), 2 (hangs) or 3 (answers nonsense)."""
    key = client_key(context.node_config, context.node_id)
    if key == 0:
        raise RuntimeError("a secret of client 0")
    if key == 1:
        os._exit(1)
    if key == 2:
        threading.Event().wait()
    if key == 3:
        return Message(RecordDict(), reply_to=message)
    return answer_query(message, context)
