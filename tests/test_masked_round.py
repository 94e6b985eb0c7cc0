"""Client-level privacy that trusts no server: noise in parts, rounds that lose clients, ledgers that count sums."""

import math

import numpy as np
import pytest

from fedkd.client import Site, answer
from fedkd.codec import encode_query
from fedkd.collect import Reply
from fedkd.config import Config
from fedkd.dataset import fingerprint
from fedkd.errors import BudgetExhausted, ConfigError, PrivacyError, QuorumError
from fedkd.events import DistributedGaussian, NonPrivate
from fedkd.federation import federation
from fedkd.files import load_arrays
from fedkd.frames import KEYS, MASKED, UNMASK, peek
from fedkd.plan import plan
from fedkd.privacy import client_level, distributed
from fedkd.privacy.accountant import spent
from fedkd.privacy.audit import audit_mechanism
from fedkd.privacy.client_level import weighted_share
from fedkd.privacy.distributed import contribution, event, mean_of, scale_of, teacher_of_sum
from fedkd.privacy.gaussian import epsilon_of
from fedkd.privacy.neighbors import shares
from fedkd.privacy.noise import SeededEntropy
from fedkd.privacy.purse import planned
from fedkd.privacy.report import files_of, statement
from fedkd.protect import least_of, rules_of, spending
from fedkd.random import generator
from fedkd.records import Query, Release, TransferSet
from fedkd.rounds import Loop
from fedkd.secagg import server
from simulations.scene import Direct, play

KEYS_OF = {
    "protect": "distributed",
    "epsilon": 8.0,
    "expertise": "uniform",
    "evidence": "none",
    "record": False,
    "late": False,
}


def read(**keys):
    return Config.read({**KEYS_OF, **keys}, where="here")


def entropy(name="noise"):
    return SeededEntropy(generator(0, name))


# Noise in parts.


def test_two_clients_and_three_classes_by_hand():
    # (.5, .3, .2) and (.1, .1, .8) less a third each, no clip; with noise of next to nothing the mean is theirs.
    scale = scale_of(1, 3, noise_multiplier=1e-4, clip=1.0, least=2, clients=2)
    p = np.array([[[0.5, 0.3, 0.2]], [[0.1, 0.1, 0.8]]])
    total = sum(contribution(one, np.ones(1), scale, entropy()) for one in p)
    got = mean_of(total, 2, scale, 3)
    assert got.p == pytest.approx(np.array([[0.3, 0.2, 0.5]]), abs=3e-4)
    assert got.sd == pytest.approx(1e-4 * math.sqrt(2 / 3) * math.sqrt(2) / 2)


@pytest.mark.parametrize(("parties", "least"), [(4, 4), (8, 4)])
def test_the_noise_of_a_sum_is_what_its_least_clients_need_and_more_with_more(parties, least):
    scale = scale_of(2000, 3, noise_multiplier=0.7, clip=0.5, least=least, clients=10)
    silent = np.zeros(2000)
    total = sum(contribution(np.zeros((2000, 3)), silent, scale, entropy(str(k))) for k in range(parties))
    assert total.std() == pytest.approx(scale.sigma * math.sqrt(parties / (least - 1)), rel=0.03)
    assert scale.sigma == pytest.approx(0.7 * 0.5 * math.sqrt(2000 * 2 / 3) * 2**scale.bits)
    assert mean_of(total, parties, scale, 3).p.std() == pytest.approx(mean_of(total, parties, scale, 3).sd, rel=0.03)
    assert scale.sigma / math.sqrt(least) > 4  # units of the last place


def test_what_a_client_adds_is_never_longer_than_the_clip():
    scale = scale_of(50, 3, noise_multiplier=1e-4, clip=0.3, least=3, clients=3)
    p = np.eye(3)[np.zeros(50, int)]
    mine = contribution(p, np.ones(50), scale, entropy())
    assert np.linalg.norm(mine) / 2.0**scale.bits == pytest.approx(0.3 * math.sqrt(50 * 2 / 3), rel=1e-3)


WEIGHTED = {"clip": 1.0, "power": 0.25, "balance": 0.5}


@pytest.mark.parametrize("w", [[32.0, 2.0, 0.0], [1e300, 1.0, 1e-300], [np.inf, np.inf, 0.0], [np.nan, 0.0, 1e38]])
def test_no_weights_move_a_sum_by_more_than_the_clip(w):
    scale = scale_of(3, 4, noise_multiplier=0.01, least=3, clients=3, **WEIGHTED)
    p = np.array([[0.7, 0.1, 0.1, 0.1], [1, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]])
    whole = weighted_share(p, np.array(w), bits=scale.bits, **WEIGHTED).astype(object)
    assert scale.clip == 1 and (whole**2).sum() <= 4**scale.bits
    assert (contribution(p, np.array(w), scale, entropy()) - whole.reshape(-1)).std() < 4 * scale.sigma


def test_weighted_vectors_are_those_of_central_one_for_each_client(monkeypatch):
    """Plain, on a trusted server, and in parts: with no noise the three sums are the same to the last unit."""
    for module in (client_level, distributed):
        monkeypatch.setattr(module, "discrete_gaussian", lambda shape, *_: np.zeros(shape, np.int64))
    rng, balance = generator(0, "ballots"), WEIGHTED["balance"]
    releases = [Release(rng.dirichlet(np.ones(4), 6), rng.lognormal(0, 9, 6), NonPrivate()) for _ in range(5)]
    scale = scale_of(6, 4, noise_multiplier=0.3, least=4, clients=5, **WEIGHTED)
    parts = sum(contribution(r.p, r.w, scale, entropy()) for r in releases)
    plain = sum(weighted_share(r.p, r.w, bits=scale.bits, **WEIGHTED) for r in releases)
    trusted, sd = client_level.noisy_weights(
        releases, 6, classes=4, noise_multiplier=0.3, power=0.25, balance=balance, entropy=entropy()
    )
    assert (parts.reshape(6, 5) == plain).all()
    assert (plain == trusted * 2**scale.bits).all()
    assert sd == scale.sigma / 2**scale.bits == 0.3  # of a sum that a client can move by 1
    features = rng.normal(size=(6, 2))
    teacher = teacher_of_sum(parts, 4 - 1, scale, features, 4)  # as many as bring the noise of one piece
    assert (teacher == client_level.divided(trusted, sd, features, balance=balance)).all()


def test_a_client_that_knows_no_row_adds_noise_and_nothing_else():
    scale = scale_of(2000, 3, noise_multiplier=0.7, least=4, clients=10, **WEIGHTED)
    mine = contribution(np.full((2000, 3), 1 / 3), np.zeros(2000), scale, entropy())
    assert mine.shape == (8000,)
    assert mine.std() == pytest.approx(0.7 * 2**scale.bits / math.sqrt(3), rel=0.03)
    assert teacher_of_sum(np.zeros(0, np.int64), 4, scale, np.zeros((0, 2)), 3).shape == (0, 3)


def test_a_sum_that_has_no_room_is_refused():
    with pytest.raises(PrivacyError, match="1000000000 clients with noise for 3: the sum may reach 2"):
        scale_of(10, 3, noise_multiplier=1.0, clip=1.0, least=3, clients=10**9)


@pytest.mark.parametrize(("epsilon", "rounds"), [(1.0, 1), (8.0, 3)])
def test_noise_in_parts_costs_what_noise_in_one_piece_does(epsilon, rounds):
    config = read(epsilon=epsilon, rounds=rounds, clients=50)
    whole = Config.read({**KEYS_OF, "protect": "central", "epsilon": epsilon, "rounds": rounds}, where="here")
    budget = spending(config)
    assert budget.noise_multiplier == pytest.approx(spending(whole).noise_multiplier, rel=1e-5)
    assert budget.noise_multiplier >= spending(whole).noise_multiplier
    (one,) = budget.round
    assert isinstance(one, DistributedGaussian) and one.parties == least_of(config) - 1 == 39
    assert planned(config) == (event(budget.noise_multiplier, 40, rounds),)
    assert epsilon * 0.999 < spent(planned(config), 1e-5) <= epsilon


@pytest.mark.parametrize("weights", [{}, {"power": 0.25, "balance": 0.5}])
def test_a_planted_error_in_the_noise_of_one_client_is_found(weights):
    claimed = epsilon_of(1 / 0.4, 1e-5)

    def release(z):
        return shares(z, least=3, rows=2, **weights)

    right, wrong = (
        audit_mechanism(
            shares(z, least=3, rows=2, **weights), claimed, 1e-5, trials=500, confidence=0.99, entropy=entropy()
        )
        for z in (0.4, 0.4 / math.sqrt(2))
    )
    assert right.passed and right.lower > 0.6 * claimed
    assert not wrong.passed


# Rounds.

SCENE = {
    **KEYS_OF, "epsilon": 80.0, "clients": 6, "rounds": 2, "learner": "linear(dimensions=20)", "student": "linear",
    "partition": "iid", "pooled": False, "feedback": "none", "deadline": 30.0,
}  # fmt: skip


@pytest.mark.parametrize("spec", ["distributed(clip=0.5, dropout='strict')", "distributed(clip=0.5, least=0.6)"])
def test_a_masked_run_learns_from_sums(spec):
    reports = play("expert", **{**SCENE, "protect": spec})
    assert reports[-1].metrics["student"] > 0.55
    assert reports[-1].metrics["local_mean"] is None
    assert {row["status"] for row in reports[-1].clients.values()} == {"answered"}
    seeded = [play("expert", **{**SCENE, "protect": spec, "noise": "seeded"})[-1].metrics for _ in range(2)]
    assert seeded[0]["student_nll"] == seeded[1]["student_nll"]  # keys differ, the sum does not
    told = plan(Config.read({**SCENE, "protect": spec, "evaluate": False}, where="here"))
    assert told.rounds[0].up_frame == reports[0].clients["5"]["bytes_up"]
    assert told.rounds[0].down_frame == reports[0].clients["5"]["bytes_down"]


@pytest.mark.parametrize("expertise", ["density", "entropy"])
def test_a_masked_run_weighs_by_expertise_and_no_frame_tells_of_weights(expertise):
    keys = {**SCENE, "protect": "distributed(least=0.6)", "expertise": expertise, "epsilon": 300.0, "rounds": 1}
    (report,) = play("expert", **keys)
    assert report.metrics["student"] > 0.5
    told = plan(Config.read({**keys, "evaluate": False}, where="here"))
    for row in report.clients.values():
        assert (row["status"], row["bytes_up"]) == ("answered", told.rounds[0].up_frame)
    flat = plan(Config.read({**keys, "expertise": "uniform", "evaluate": False}, where="here"))
    assert told.rounds[0].up_frame - flat.rounds[0].up_frame == 4 * 400  # a weight a row


class Failing(Direct):
    """A network on which clients fall silent: ``gone`` maps a client to the first phase that it does not answer."""

    def __init__(self, sites, config, gone):
        super().__init__(sites, config)
        self.gone = gone

    def again(self, round_, client, frame, acknowledged):
        if peek(frame).kind >= self.gone.get(client, 99):
            self._replies.append(Reply(round_, client, None, "no battery", None, 0, 0.0, client))
            return len(frame)
        return super().again(round_, client, frame, acknowledged)


def network(tmp_path, gone, **keys):
    config = Config.read({**SCENE, **keys}, where="here")
    shared = federation(config.data, config.transfer, config.partition, config.clients, config.seed)
    sites = [
        Site(k, *shared.private(k), 10, shared.transfer, state=tmp_path / str(k) / "s", ledger=tmp_path / f"ledger-{k}")
        for k in range(config.clients)
    ]
    return Loop(config, shared.transfer, 10, None), Failing(sites, config, gone), sites


ROBUST = "distributed(clip=0.5, least=0.6)"
STRICT = "distributed(clip=0.5, least=0.6, dropout='strict')"


@pytest.mark.parametrize(
    ("protect", "gone"),
    [(STRICT, {"1": MASKED}), (STRICT, {"0": KEYS, "5": MASKED}), (ROBUST, {"2": MASKED}), (ROBUST, {"2": UNMASK})],
)
def test_a_round_goes_on_without_those_it_lost_and_says_so(tmp_path, protect, gone):
    loop, exchange, _ = network(tmp_path, gone, protect=protect, student="none")
    report = loop.step(exchange)
    for client, row in report.clients.items():
        lost = client in gone and gone[client] != UNMASK  # its vector was in the sum by then
        assert row["status"] == ("failed" if lost else "answered")
        assert row["error"] == ("no battery" if lost else None)
    assert loop.state.teacher.p.shape == (400, 10)


@pytest.mark.parametrize(
    ("protect", "gone", "sentence"),
    [
        (STRICT, dict.fromkeys("012", KEYS), r"3 of 6 clients sent keys, 4 needed \(least = 4, quorum = 0.5\)"),
        (STRICT, dict.fromkeys("012", MASKED), "3 of 6 clients sent ballots, 4 needed.*Client 0: no battery"),
        (STRICT, {"0": MASKED, "1": UNMASK}, "client 1 did not say what it shares with client 0, who is gone"),
        (ROBUST, dict.fromkeys("01", UNMASK), "4 shares of a secret of client 0, 5 needed"),
    ],
)
def test_a_round_that_loses_too_many_is_no_round(tmp_path, protect, gone, sentence):
    loop, exchange, _ = network(tmp_path, gone, protect=protect, student="none")
    with pytest.raises(QuorumError, match=sentence):
        loop.step(exchange)
    assert loop.state.round == 0


def test_a_strict_round_is_lost_with_a_ballot_that_may_still_be_on_its_way(tmp_path):
    loop, exchange, _ = network(tmp_path, {}, protect=STRICT, student="none")
    real = exchange.again
    exchange.again = lambda round_, client, frame, known: (
        0 if client == "2" and peek(frame).kind == MASKED else real(round_, client, frame, known)
    )
    with pytest.raises(QuorumError, match="client 2 fell silent with its ballot on the way"):
        loop.step(exchange)


def test_a_client_whose_keys_nobody_would_take_costs_itself_only(tmp_path, monkeypatch):
    loop, exchange, _ = network(tmp_path, {}, protect=ROBUST, student="none")
    real = server.sound
    monkeypatch.setattr(server, "sound", lambda cards, *given: [one for one in real(cards, *given) if one.client != 3])
    report = loop.step(exchange)
    assert report.clients["3"] == {
        **report.clients["3"],
        "status": "failed",
        "error": "keys that others would not take",
    }
    assert report.metrics["answered"] == 5


def test_nothing_of_a_vector_is_left_on_the_device_but_its_masked_words(tmp_path):
    loop, exchange, sites = network(tmp_path, {}, protect=ROBUST, student="none")
    loop.step(exchange)
    arrays, _ = load_arrays(sites[0].state)
    assert not len(arrays["answer"])
    assert all(path.stat().st_size < 4000 for path in (tmp_path / "ledger-0").rglob("*") if path.is_file())
    assert '"masks"' not in (tmp_path / "0" / "secagg" / "0.round").read_bytes().decode("latin-1").replace("\\", "")


def test_sums_are_counted_whichever_rounds_they_are_of(tmp_path):
    loop, exchange, sites = network(tmp_path, dict.fromkeys("01", UNMASK), protect=ROBUST, student="none", rounds=2)
    with pytest.raises(QuorumError):
        loop.step(exchange)  # the vectors have left
    exchange.gone = {}
    loop.step(exchange)
    with pytest.raises(QuorumError, match="the privacy budget of this client does not allow this release"):
        loop.step(exchange)
    told = statement(loop.config, 1)  # rounds that have ended are fewer than sums that were begun
    assert told["epsilon"] == statement(loop.config, 2)["epsilon"]
    assert told["least_clients_in_a_sum"] == 4
    assert "a sum is of 4 clients or more" in files_of(told)["privacy_report.md"]
    with pytest.raises(BudgetExhausted):
        vector_of(loop, sites)


def vector_of(loop, sites):
    """Ask all sites for a masked vector of round 3, as a server would."""
    query = Query(3, np.arange(400), 10, loop.transfer.fingerprint)
    cards = [server.read_card(answer(site, server.ask_keys(query), loop.config).frame) for site in sites]
    members = server.roster(cards, rules_of(loop.config))
    shares_of = {
        site.key: server.read_shares(answer(site, server.ask_shares(query, members)[site.key], loop.config).frame)
        for site in sites
    }
    question = server.ask_masked(query, encode_query(query, 400), members, shares_of)[0]
    return answer(sites[0], question, loop.config)


def test_a_ballot_never_leaves_without_its_masks(tmp_path):
    loop, _, sites = network(tmp_path, {}, protect=STRICT)
    query = Query(1, np.arange(400), 10, loop.transfer.fingerprint)
    with pytest.raises(PrivacyError, match="no keys for round 1|not expected"):
        answer(sites[0], encode_query(query, 400), loop.config)
    x = np.zeros((2, 1, 8, 8), np.float32)
    site = Site(0, x, np.zeros(2, np.int64), 10, TransferSet(x, fingerprint(x)))
    with pytest.raises(PrivacyError, match="needs a folder for its keys"):
        answer(site, encode_query(query, 400), loop.config)


# Settings.


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"clients": 2}, "least: a sum of 2 clients says too much of each; 3 are needed at the least"),
        ({"protect": "distributed(least=0.2)"}, "a sum of 2 clients"),
        ({"broadcast": "float16 | delta"}, "in a masked round all are told the same; leave 'delta' out"),
        ({"defend": "cap"}, "reads single ballots"),
        ({"record": True}, "keeps every ballot"),
        ({"late": True}, "late: "),
        (
            {"protect": "distributed(dropout='rubust')"},
            "must be one of strict, robust, got 'rubust'. Did you mean 'robust'",
        ),
        ({"protect": "distributed(least=0.0)"}, "'least' must be above 0 and at most 1"),
        ({"protect": "distributed(clip=2.0)"}, "'clip' must be above 0 and at most 1"),
        ({"feedback": "personal"}, "made of single ballots"),
    ],
)
def test_what_goes_with_masks_is_checked(keys, sentence):
    with pytest.raises(ConfigError, match=sentence):
        read(**keys)


def test_both_sides_hold_to_the_same_rules_and_those_of_another_run_are_others():
    assert rules_of(read()) == rules_of(read())
    assert rules_of(read()).least == 7  # 0.8 of 8
    assert rules_of(read(seed=1)).topic != rules_of(read()).topic
