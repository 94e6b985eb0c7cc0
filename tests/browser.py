"""Headless Chromium for tests, over its DevTools pipe: no library, no open port, every wait with an end."""

import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 60.0
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
# Chromium reads its orders from descriptor 3 and answers on 4.
START = (
    "import os, sys; a, b = map(int, sys.argv[1:3]); os.dup2(a, 300); os.dup2(b, 301);"
    "os.dup2(300, 3); os.dup2(301, 4); os.closerange(5, 302); os.execv(sys.argv[3], sys.argv[3:])"
)


class BrowserError(AssertionError):
    """The browser, or the page in it, did not do what the test expects."""


class Browser:
    """One Chromium. Every phone is a context of its own: its storage is no other's."""

    def __init__(self, folder, *, trusted=()):
        """Start it; ``trusted`` are base64 SHA-256 of public keys whose certificates are taken as they are."""
        read, ours = os.pipe()
        theirs, write = os.pipe()
        flags = [
            *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"),
            *("--disable-background-networking", "--disable-component-update", "--no-first-run", "--disable-sync"),
            *("--disable-dev-shm-usage", "--proxy-server=direct://", f"--user-data-dir={folder}"),
            *([f"--ignore-certificate-errors-spki-list={','.join(trusted)}"] if trusted else []),
        ]  # fmt: skip
        self._log = open(Path(folder).with_suffix(".log"), "wb")  # noqa: SIM115 - closed in close()
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, str(read), str(write), CHROMIUM, *flags, "about:blank"],
            pass_fds=(read, write),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        os.close(read)
        os.close(write)
        self._in, self._out, self._rest = ours, theirs, b""
        self._numbers, self._answers, self._events = itertools.count(1), {}, []

    def call(self, method, session=None, **parameters):
        """Return the result of a DevTools method."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        os.write(self._in, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + PATIENCE
        while number not in self._answers:
            self._listen(end, method)
        answer = self._answers.pop(number)
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def events(self, session, method):
        """Return and forget the parameters of all events of a kind so far."""
        while select.select([self._out], [], [], 0)[0]:
            self._listen(time.monotonic() + 1, method)
        mine = [e for e in self._events if e.get("sessionId") == session and e["method"] == method]
        self._events = [e for e in self._events if e not in mine]
        return [e["params"] for e in mine]

    def _listen(self, end, what):
        if not select.select([self._out], [], [], max(0, end - time.monotonic()))[0]:
            raise BrowserError(f"no answer to {what} within {PATIENCE:g} s")
        data = os.read(self._out, 1 << 20)
        if not data:
            raise BrowserError(f"the browser ended during {what}: {Path(self._log.name).read_text()[-500:]}")
        *whole, self._rest = (self._rest + data).split(b"\0")
        for text in whole:
            message = json.loads(text)
            if "id" in message:
                self._answers[message["id"]] = message
            else:
                self._events.append(message)

    def phone(self, url):
        """Open ``url`` on a phone of its own."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        phone = self.attach(self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"])
        phone.call("Emulation.setDeviceMetricsOverride", **PHONE)
        phone.go(url)
        return phone

    def attach(self, target):
        """Return a page that is open already."""
        phone = Phone(self, self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        for domain in ("Page", "Runtime", "Log", "DOM"):
            phone.call(f"{domain}.enable")
        return phone

    def close(self):
        """End it."""
        for end in (self._in, self._out):
            os.close(end)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=10)
        if self.process.poll() is None:
            os.killpg(self.process.pid, 9)
            self.process.wait()
        self._log.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Phone:
    """One page of a :class:`Browser`, touched and read as a person would."""

    def __init__(self, browser, session):
        self.browser, self.session = browser, session

    def call(self, method, **parameters):
        return self.browser.call(method, self.session, **parameters)

    def go(self, url):
        self.call("Page.navigate", url=url)

    def reload(self):
        self.call("Page.reload")

    def run(self, script):
        """Return the value of a JavaScript expression, awaited."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise BrowserError(f"{script}: {result['exceptionDetails'].get('exception', {}).get('description')}")
        return result["result"].get("value")

    def text(self):
        return self.run("document.body ? document.body.innerText : ''") or ""

    def wait(self, words, *, seconds=PATIENCE):
        """Wait until the page says ``words``."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(BrowserError):  # between two pages there is none
                if words in self.text():
                    return
            time.sleep(0.1)
        raise BrowserError(f"no {words!r} within {seconds:g} s; the page says: {self.text()!r}; {self.complaints()}")

    def touch(self, words):
        """Press the button or label that says ``words``."""
        found = (
            "[...document.querySelectorAll('button, label.button, summary')]"
            f".find(e => e.offsetParent && !e.disabled && e.textContent.trim() === {json.dumps(words)})"
        )
        end = time.monotonic() + 20
        while not self.run(f"!!{found}"):
            if time.monotonic() > end:
                raise BrowserError(f"nothing to touch says {words!r}; the page says: {self.text()!r}")
            time.sleep(0.1)
        self.run(f"{found}.click()")

    def type(self, selector, value):
        """Put a value into a field."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{element}.value = {json.dumps(value)}; {element}.dispatchEvent(new Event('change'))")

    def give(self, selector, *paths):
        """Choose files."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    def picture(self, path, *, whole=False, dark=False):
        """Save what is seen."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
                  {"name": "prefers-reduced-motion", "value": "reduce"}]  # fmt: skip
        self.call("Emulation.setEmulatedMedia", features=scheme)
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        Path(path).write_bytes(base64.b64decode(data))

    def complaints(self):
        """Return what went wrong in the page so far: exceptions and errors of the console, such as those of its CSP."""
        logs = [e["entry"] for e in self.browser.events(self.session, "Log.entryAdded")]
        broken = [e["exceptionDetails"] for e in self.browser.events(self.session, "Runtime.exceptionThrown")]
        said = [f"{e['text']} {e.get('url', '')}" for e in logs if e["level"] == "error"]
        return said + [e.get("exception", {}).get("description", e["text"]) for e in broken]
