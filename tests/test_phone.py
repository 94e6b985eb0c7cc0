"""The real thing: two phones in headless Chromium, a warm node and a stock SuperNode in one federation, over TLS."""

import base64
import contextlib
import hashlib
import json

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from test_serve import Served, stock_node

from fedkd.config import Config
from fedkd.federation import federation
from fedkd.recording import load_round, path_of
from fedkd.serving import pki
from fedkd.serving.home import Home
from fedkd.serving.invites import Registry

pytestmark = [pytest.mark.slow, pytest.mark.chromium, pytest.mark.skipif(CHROMIUM is None, reason="no chromium found")]

SETTINGS = {"learner": "linear", "student": "linear", "clients": 4, "rounds": 2, "pooled": False, "distill_epochs": 5}
SENT = """(async () => {
  const db = await new Promise(ok => { const q = indexedDB.open('fedkd'); q.onsuccess = () => ok(q.result) });
  const all = await new Promise(ok => { const q = db.transaction('values').objectStore('values')
    .getAll(IDBKeyRange.bound('sent.', 'sent.~')); q.onsuccess = () => ok(q.result) });
  db.close(); return all })()"""


def key_of(certificate):
    """Return what names the key of a certificate to Chromium."""
    key = x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
    return base64.b64encode(
        hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
    ).decode()


def take_part(browser, url, share):
    phone = browser.phone(url)
    phone.touch("Choose my data")
    phone.type("#share", str(share))
    phone.touch("Take this share")
    phone.wait(f"examples: demo share {share}")
    phone.touch("Take part")
    phone.wait("Waiting for the first question.")
    return phone


def test_phones_a_warm_node_and_a_stock_node_teach_more_than_each_of_them_knows(tmp_path):
    home = Home(tmp_path / "home")
    made = pki.init(home.pki, ["127.0.0.1"])
    private, public = pki.node_key(home.pki, "stock")
    Registry(home.registry).add(public.read_bytes(), "stock")
    sets = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    with contextlib.ExitStack() as stack:
        served = Served(
            *("serve", *sets, "--demo", "--host", "127.0.0.1", "--port", "0", "--home", str(home.folder)),
            *("--name", "all"), cwd=tmp_path,
        )  # fmt: skip
        stack.callback(served.close)
        url, port = served.says(r"(https://127\.0\.0\.1:(\d+)/#code=[^\s']+)").groups()
        address = f"127.0.0.1:{port}"
        stack.enter_context(stock_node(tmp_path, 3, 4, address=address, ca=made.ca, key=private))
        warm = Served("join", url, "--demo", "2", "--yes", "--once", "--home", str(tmp_path / "warm"), cwd=tmp_path)
        stack.callback(warm.close)
        browser = stack.enter_context(Browser(tmp_path / "chromium", trusted=[key_of(made.certificate)]))
        phones = [take_part(browser, url, share) for share in (0, 1)]
        phones[0].wait("Round 1 of 2", seconds=120)
        phones[0].reload()  # in the middle of the round
        phones[0].wait("Round 2 of 2", seconds=120)
        for phone in phones:
            phone.wait("Thank you!", seconds=120)
        assert served.ends() == 0, served.text
        sent = [phone.run(SENT) for phone in phones]
        complaints = [line for phone in phones for line in phone.complaints() if "/v1/fleet/" not in line]
    assert complaints == []
    for mine in sent:
        assert [(one["round"], one["delivered"], one["refusal"]) for one in mine] == [(1, True, None), (2, True, None)]
    assert len(Registry(home.registry).members()) == 4  # a reload makes no other node
    run = tmp_path / "runs" / "all"
    rounds = [load_round(path_of(run / "ballots", r)) for r in (1, 2)]
    assert [len(one.releases) for one in rounds] == [4, 4]
    config = Config(**SETTINGS)
    truth = federation(config.data, config.transfer, config.partition, config.clients, config.seed).truth
    alone = [float((release.p.argmax(axis=1) == truth).mean()) for release in rounds[0].releases.values()]
    student = json.loads((run / "summary.json").read_text())["scoreboard"]["student"]
    assert student > max(alone) + 0.02, f"student {student}, alone {alone}"
    assert np.isfinite(alone).all() and student > 0.9
