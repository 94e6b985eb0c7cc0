"""The ClientApp. All it does lives in fedkd; this file only says where, and that both come from the same folder."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedkd.flower.apps import answer_query, same_folder

same_folder(__file__)

app = ClientApp()


@app.query("release")
def release(message: Message, context: Context) -> Message:
    """Answer the server's query with soft labels on the transfer set."""
    return answer_query(message, context)
