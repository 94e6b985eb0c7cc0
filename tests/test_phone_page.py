"""The phone page in headless Chromium before the real front, without a SuperLink: what people see and may do wrong."""

import json
import struct
import time
import zlib
from dataclasses import replace

import numpy as np
import pytest
from browser import CHROMIUM, PHONE, Browser
from phone_front import offer_of, served
from safetensors.numpy import save

from fedkd.config import Config

pytestmark = [pytest.mark.chromium, pytest.mark.skipif(CHROMIUM is None, reason="no chromium binary found")]

CONFIG = Config(clients=4, learner="linear")


@pytest.fixture(scope="module")
def offer():
    return offer_of(CONFIG)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("chromium")) as one:
        yield one


@pytest.fixture
def server(tmp_path, offer):
    with served(tmp_path, offer) as one:
        yield one


def png(gray):
    """Return a picture of gray values (H, W) as a PNG file."""
    rows = b"".join(b"\0" + row.tobytes() for row in np.asarray(gray, np.uint8))

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", gray.shape[1], gray.shape[0], 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def kept(phone, name):
    """Return a value of the page's storage, as JSON knows it."""
    return phone.run(f"""(async () => {{
      const done = q => new Promise(ok => {{ q.onsuccess = () => ok(q.result) }});
      const db = await done(indexedDB.open('fedkd'));
      const v = await done(db.transaction('values').objectStore('values').get({json.dumps(name)}));
      db.close();
      return v instanceof Object && 'y' in v ? {{...v, x: [...v.x], y: [...v.y]}} : v }})()""")


def at_data(browser, server):
    phone = browser.phone(server.invitation())
    phone.touch("Choose my data")
    phone.wait("It stays on this phone.")
    return phone


def joined(browser, server):
    phone = at_data(browser, server)
    phone.touch("Take this share")
    phone.wait("examples: demo share")
    phone.touch("Take part")
    phone.wait("Waiting for the first question.")
    return phone


def test_a_guest_reads_what_leaves_and_that_nothing_protects_it(browser, server):
    phone = browser.phone(server.invitation())
    phone.wait("No privacy guarantee")
    text = phone.text()
    assert "For each public sample: how likely each of 10 classes is" in text
    assert "400 public samples" in text
    assert "3 times in all" in text
    assert "code=" not in phone.run("location.href")  # it shall not be shared with the address
    for width in (320, 360, 390):
        phone.call("Emulation.setDeviceMetricsOverride", **PHONE | {"width": width})
        assert phone.run("document.documentElement.scrollWidth") == width  # no scrolling sideways
    assert phone.run("getComputedStyle(document.querySelector('.shield')).backgroundColor") != "rgb(255, 255, 255)"
    assert phone.complaints() == []  # not of its content security policy either


def test_without_an_invitation_the_page_explains_and_stops(browser, server):
    phone = browser.phone(server.url)
    phone.wait("To take part you need an invitation")
    assert phone.run("[...document.querySelectorAll('button.main')].every(b => b.disabled)")


def test_a_run_that_a_phone_cannot_serve_is_declined_with_the_reason(browser, tmp_path, offer):
    config = dict(offer.about["config"]) | {"release": "top_k(k=2)"}
    with served(tmp_path, replace(offer, about=dict(offer.about) | {"config": config})) as server:
        phone = browser.phone(server.invitation())
        phone.wait("This phone cannot take part: release: a phone cannot do 'top_k'")
        assert phone.run("document.querySelector('button.main').disabled")


def test_a_code_that_is_used_up_lets_nobody_in_and_says_so(browser, server):
    code = server.registry.invite()
    first = f"{server.url}/#code={code}&ca=00"
    for words in ("Waiting for the first question.", "this join code is used up"):
        phone = browser.phone(first)
        phone.touch("Choose my data")
        phone.touch("Take this share")
        phone.wait("examples: demo share")
        phone.touch("Take part")
        phone.wait(words)
    assert len(server.registry.members()) == 1


def test_pictures_become_examples_that_look_like_the_samples(browser, server, tmp_path):
    phone = at_data(browser, server)
    phone.wait("The public samples look like this")
    paper = np.full((120, 200), 255)  # dark on light, as on paper; the samples are light on dark
    paper[:, 96:104] = 0
    for k in range(2):
        (tmp_path / f"{k}.png").write_bytes(png(paper))
    phone.type("#label", "1")
    phone.give("#pictures", tmp_path / "0.png", tmp_path / "1.png")
    phone.wait("2 examples: 2 pictures")
    data = kept(phone, "data")
    assert data["y"] == [1, 1]
    image = np.array(data["x"]).reshape(2, 8, 8)[0]
    expected = np.zeros((8, 8))  # the negative of the middle of the picture: the line covers 4 / 15 of two columns
    expected[:, 3:5] = 4 / 15
    assert np.abs(image - expected).max() < 0.01
    phone.run("document.querySelector('.album .drop').click()")
    phone.wait("Choose at least two examples.")
    assert phone.run("document.querySelector('.bar .main').disabled")
    phone.reload()
    phone.touch("Choose my data")
    assert phone.run("document.querySelectorAll('.album li').length") == 1  # pictures outlive a reload
    (tmp_path / "text.png").write_text("no picture")
    phone.give("#pictures", tmp_path / "text.png")
    phone.wait("“text.png” is not a picture that this browser can read.")


def test_a_file_is_taken_only_if_it_fits(browser, server, tmp_path):
    phone = at_data(browser, server)
    np.savez(tmp_path / "wide.npz", x=np.zeros((3, 1, 9, 9), np.uint8), y=np.zeros(3, int))
    phone.give("#file", tmp_path / "wide.npz")
    phone.wait("rows of x must be 1 x 8 x 8, got 1 x 9 x 9")
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    phone.give("#file", tmp_path / "bad.npz")
    phone.wait("this is not a safetensors file")
    np.savez_compressed(tmp_path / "mine.npz", x=np.zeros((3, 8, 8), np.uint8), y=np.array([0, 4, 4]))
    phone.give("#file", tmp_path / "mine.npz")
    phone.wait("3 examples: mine.npz")


def test_a_transfer_set_that_was_tampered_with_is_not_used(browser, tmp_path, offer):
    x = np.zeros((400, 1, 8, 8), "<f4")
    with served(tmp_path, replace(offer, transfer=save({"x": x}))) as server:
        phone = at_data(browser, server)
        phone.wait("the transfer set was changed on its way")
        phone.touch("Take this share")
        phone.wait("examples: demo share")
        phone.touch("Take part")
        phone.wait("the transfer set was changed on its way")
        assert server.registry.members() == ()


def test_a_page_that_is_closed_comes_back_as_the_same_node_even_before_the_server_does(browser, server):
    phone = joined(browser, server)
    phone.run("navigator.serviceWorker.ready.then(() => true)")
    before = server.registry.members()
    phone.reload()
    phone.wait("Waiting for the first question.")
    server.shut()
    phone.wait("The server does not answer. Trying again; nothing is lost.")
    phone.reload()  # the page itself comes from the phone
    phone.wait("The server does not answer. Trying again; nothing is lost.")
    server.open()
    phone.wait("Waiting for the first question.")
    assert server.registry.members() == before
    assert "activate-node" not in server.asked  # it was alive all the time


def test_a_node_that_was_revoked_is_told_so(browser, server):
    phone = joined(browser, server)
    server.registry.revoke(server.registry.members()[0].name)
    phone.wait("The server does not let this phone in: this key was revoked by the server's owner")


def test_two_tabs_are_not_two_nodes(browser, server):
    phone = joined(browser, server)
    context = browser.call("Target.getTargetInfo", phone.session)["targetInfo"]["browserContextId"]
    target = browser.call("Target.createTarget", url=server.url, browserContextId=context)["targetId"]
    second = browser.attach(target)
    second.wait("This is open in another tab already.")
    assert "You are in" in phone.text()  # and waits until it is in sight again


def test_who_pauses_sends_nothing_and_who_leaves_can_delete_everything(browser, server):
    phone = joined(browser, server)
    phone.touch("Pause")
    phone.wait("Paused. Nothing is computed or sent.")
    server.asked.clear()
    time.sleep(2.5)  # longer than two looks for a question
    assert server.asked == []
    phone.touch("Go on")
    phone.wait("Waiting for the first question.")
    phone.touch("Leave")
    phone.wait("You have left")
    assert "deactivate-node" not in server.asked  # an answer of a node that signs off is lost
    phone.reload()
    phone.wait("You have left")
    phone.touch("Delete everything")
    phone.wait("Really delete?")
    phone.touch("Delete everything")
    phone.wait("Nothing of this is left on your phone.")
    assert [kept(phone, name) for name in ("key", "id", "data", "transfer", "agreed")] == [None] * 5
    assert phone.run("caches.keys().then(k => k.length)") == 0
    assert phone.run("navigator.serviceWorker.getRegistrations().then(r => r.length)") == 0


def test_every_control_has_a_name_and_every_text_enough_contrast(browser, server):
    phone = at_data(browser, server)
    phone.touch("Take this share")
    phone.wait("examples: demo share")
    nameless = (
        "[...document.querySelectorAll('button, input, select')].filter(e => !(e.labels && e.labels.length) "
        "&& !e.textContent.trim() && !e.getAttribute('aria-label')).map(e => e.outerHTML)"
    )
    assert phone.run(nameless) == []
    contrast = """(() => {
      const rgb = c => { const s = document.createElement('canvas').getContext('2d');
        s.fillStyle = c; s.fillRect(0, 0, 1, 1);
        return [...s.getImageData(0, 0, 1, 1).data] };
      const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
        .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        .reduce((sum, v, k) => sum + v * [.2126, .7152, .0722][k], 0);
      const behind = e => { for (; e; e = e.parentElement) {
          const c = rgb(getComputedStyle(e).backgroundColor); if (c[3] > 200) return c }
        return rgb('white') };
      const texts = [...document.querySelectorAll('main *')].filter(e => e.offsetParent && !e.disabled
        && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()));
      return Math.min(...texts.map(e => { const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))];
        return (Math.max(a, b) + .05) / (Math.min(a, b) + .05) })) })()"""
    for scheme in ("light", "dark"):
        phone.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        assert phone.run(contrast) >= 4.5, scheme  # WCAG 2.2, AA
