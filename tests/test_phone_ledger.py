"""The phone's ledger in a real browser's storage: what was written is there again, and of two pages only one writes."""

import functools
import http.server
import json
import queue
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parent.parent / "fedkd" / "serving" / "page"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [pytest.mark.chromium, pytest.mark.skipif(CHROMIUM is None, reason="no chromium binary found")]

SCRIPT = """
import * as fedkd from "./science.js";
const told = {};
const open = async (name, more = {}) =>
  fedkd.Ledger.open(await fedkd.openStore(name), { owner: "phone", budget: null, ...more });
const line = (promise) => promise.then(() => "no error", (error) => error.message);
try {
  const one = await open("ledger");
  await one.reserve("7/round/1", { kind: "non_private" }, "7", "aa");
  await one.commit("7/round/1", Uint8Array.of(1, 2, 3));
  const two = await open("ledger", { seen: one.head });
  told.again = [...await two.replay("7/round/1", "aa")];
  told.heads = [one.head, two.head];
  await one.reserve("7/round/2", { kind: "non_private" }, "7", "bb");
  told.second = await line(two.reserve("7/round/3", { kind: "non_private" }, "7", "cc"));
  const three = await open("ledger");
  told.entries = three.entries().map(([id, entry]) => [id, entry.payload !== null]);
  told.other = await line(open("ledger", { owner: "other" }));
  const store = indexedDB.open("ledger");
  const database = await new Promise((resolve) => (store.onsuccess = () => resolve(store.result)));
  const writing = database.transaction("records", "readwrite");
  writing.objectStore("records").delete(2);
  await new Promise((resolve) => (writing.oncomplete = resolve));
  told.cut = await line(open("ledger"));
  told.fresh = (await open("another")).head.count;
  const noise = fedkd.normals(fedkd.system, 100000);
  told.variance = noise.reduce((sum, value) => sum + value * value, 0) / noise.length;
} catch (error) {
  told.error = `${error.name}: ${error.message}`;
}
await fetch("/told", { method: "POST", body: JSON.stringify(told) });
"""


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the built page, a document that runs the script, and takes what that tells."""

    def __init__(self, *arguments, told, **options):
        self.told = told
        super().__init__(*arguments, directory=str(PAGE), **options)

    def do_GET(self):
        if self.path != "/":
            super().do_GET()
            return
        body = f"<!doctype html><title>ledger</title><script type=module>{SCRIPT}</script>".encode()
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        self.told.put(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    answers = queue.Queue()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, told=answers)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        profile = tmp_path_factory.mktemp("chromium")
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}"]
        address = f"http://127.0.0.1:{server.server_port}/"  # loopback is a secure context, as IndexedDB's hashes need
        browser = subprocess.Popen(
            [CHROMIUM, *options, "--remote-debugging-port=0", address], stderr=subprocess.DEVNULL
        )
        try:
            return answers.get(timeout=120)
        finally:
            browser.terminate()
            browser.wait(timeout=30)
            server.shutdown()


def test_what_was_committed_is_there_again_to_the_byte(told):
    assert "error" not in told, told["error"]
    assert told["again"] == [1, 2, 3]
    assert told["heads"][0] == told["heads"][1]
    assert told["heads"][0]["count"] == 3


def test_of_two_pages_that_write_the_second_fails_and_nothing_is_lost(told):
    assert told["second"] == "the ledger could not be written (ConstraintError); nothing is released"
    assert told["entries"] == [["7/round/1", True], ["7/round/2", False]]


def test_another_owner_and_a_record_that_is_gone_are_noticed(told):
    assert told["other"] == "this ledger is of phone, got other"
    assert "cannot be trusted, nothing is released" in told["cut"]
    assert told["fresh"] == 1


def test_noise_in_the_browser_has_the_size_that_was_promised(told):
    assert abs(told["variance"] - 1) < 0.03
