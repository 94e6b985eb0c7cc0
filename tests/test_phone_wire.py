"""What a phone says in Flower's words is what Flower reads, with nothing but node."""

import base64
import json
import shutil
import subprocess
from pathlib import Path

import fleet_vectors
import numpy as np
import pytest
from flwr.app import Message
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from fedkd.flower.messages import read_answer

PAGE = Path(__file__).resolve().parent.parent / "fedkd" / "serving" / "page"
NODE = shutil.which("node")
ANSWER = """
import * as page from %s;
const metadata = {
  runId: 42n, messageId: "", source: 18364758544493064720n, target: 1n, replyTo: "ab".repeat(32), group: "1", ttl: 600,
  type: "query.release", createdAt: 1795300000.25, sourceTask: null, targetTask: 7n,
};
const frame = Uint8Array.from({ length: 9_000_000 }, (_, k) => (k * k) %% 251);
const piece = await page.message(metadata, "release", { salt: new Uint8Array(16) }, frame);
const parts = Object.fromEntries([...piece.parts].map(([id, part]) => [id, Buffer.from(part).toString("base64")]));
process.stdout.write(JSON.stringify({ id: piece.tree.id, parts }));
"""


def test_the_vectors_are_what_todays_flower_writes():
    assert json.loads(fleet_vectors.PATH.read_text()) == fleet_vectors.vectors()


@pytest.mark.skipif(NODE is None, reason="node is not installed")
def test_flower_puts_a_large_answer_of_a_phone_together():
    program = ANSWER % json.dumps((PAGE / "protocol.js").as_uri())
    done = subprocess.run(
        [NODE, "--input-type=module", "-"], input=program, capture_output=True, text=True, timeout=60, check=True
    )
    said = json.loads(done.stdout)
    parts = {name: base64.b64decode(part) for name, part in said["parts"].items()}
    message = inflate_object_from_contents(said["id"], parts)
    assert isinstance(message, Message) and message.object_id == said["id"]  # Flower would have made the same objects
    assert (message.metadata.dst_node_id, message.metadata.dst_task_id) == (1, 7)
    frame, accuracy, client, error = read_answer(message.content)
    assert (accuracy, client, error) == (None, None, None)
    k = np.arange(9_000_000, dtype=np.int64)
    assert frame == (k * k % 251).astype(np.uint8).tobytes()
