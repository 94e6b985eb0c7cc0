"""Secure aggregation: masks that cancel, secrets that are shared, a protocol in which clients may be lost anywhere."""

import contextlib
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd import frames
from fedkd.errors import CodecError, PrivacyError, RoundError
from fedkd.frames import KEYS, MASKED, SHARES, UNMASK
from fedkd.records import Query
from fedkd.secagg import letters, masks, server, shamir
from fedkd.secagg.client import Rules, Vector, respond

TOPIC = b"a run"
QUERY = Query(3, np.arange(4), 2, "ab" * 32)
QUESTION = b"what do you say?"


# Masks.


def test_two_clients_agree_and_a_third_key_or_another_purpose_gives_something_else():
    a, b, c = (masks.new_key() for _ in range(3))
    seed = masks.agree(a, masks.public(b), b"round 1")
    assert masks.agree(b, masks.public(a), b"round 1") == seed
    assert masks.agree(b, masks.public(a), b"round 2") != seed
    assert masks.agree(c, masks.public(a), b"round 1") != seed
    with pytest.raises(CodecError, match="nobody can agree"):
        masks.agree(a, bytes(32), b"")


def test_masks_cancel_by_hand_on_three_clients():
    # Client 0 adds both of its masks, 1 subtracts the first and adds its other, 2 subtracts both.
    seeds = {(0, 1): b"a" * 32, (0, 2): b"b" * 32, (1, 2): b"c" * 32}
    first, second, third = (masks.stream(seed, 2) for seed in seeds.values())
    x, y, z = np.array([5, -7]), np.array([0, 2]), np.array([-6, 1])
    mine = masks.masked(x, 0, {1: b"a" * 32, 2: b"b" * 32})
    assert (mine == x.astype(np.uint32) + first + second).all()
    theirs = masks.masked(y, 1, {0: b"a" * 32, 2: b"c" * 32})
    assert (theirs == y.astype(np.uint32) - first + third).all()
    last = masks.masked(z, 2, {0: b"b" * 32, 1: b"c" * 32})
    assert masks.signed(mine + theirs + last).tolist() == [-1, -4]


def test_a_masked_vector_is_uniform_whatever_is_in_it():
    words = masks.masked(np.zeros(65536, np.int64), 1, {2: masks.new_key()})
    count = np.bincount(words.view(np.uint8), minlength=256)
    expected = 4 * 65536 / 256
    assert ((count - expected) ** 2 / expected).sum() < 400  # chi^2 with 255 degrees: p = 1e-8


def test_the_start_of_a_mask_is_the_mask_of_a_shorter_vector():
    seed = masks.new_key()
    assert (masks.stream(seed, 10)[:3] == masks.stream(seed, 3)).all()
    # AES-256-CTR of zeros under the zero key, first block: FIPS 197 arithmetic, known from NIST's CAVP vectors.
    assert masks.stream(bytes(32), 4).astype("<u4").tobytes().hex() == "dc95c078a2408989ad48a21492842087"


def test_what_does_not_fit_into_words_is_refused_beforehand():
    masks.check_room(2.0**31 - 1, "many")
    with pytest.raises(PrivacyError, match=r"many: the sum may reach 2\^31.0, words hold less than 2\^31"):
        masks.check_room(2.0**31, "many")


@pytest.mark.parametrize("count", [2, 5, 100, 101, 300])
def test_neighbors_are_mutual_and_as_many_for_all(count):
    near = masks.neighborhood(range(count), b"7")
    assert {len(peers) for peers in near.values()} == {min(count - 1, len(near[0]))}
    assert all(own in near[peer] and peer != own for own, peers in near.items() for peer in peers)
    if count > 100:
        assert 3 * np.log2(count) <= len(near[0]) <= 3 * np.log2(count) + 2
        assert near != masks.neighborhood(range(count), b"8")
    seen, todo = {0}, [0]
    while todo:
        todo += [peer for peer in near[todo.pop()] if not (peer in seen or seen.add(peer))]
    assert len(seen) == count  # all hang together


def test_what_is_sealed_opens_for_its_receiver_and_only_unchanged():
    seed = masks.new_key()
    sealed = masks.seal(seed, b"secret", b"1 to 2")
    assert masks.unseal(seed, sealed, b"1 to 2") == b"secret"
    assert masks.seal(seed, b"secret", b"1 to 2") != sealed
    for wrong in ((masks.new_key(), sealed, b"1 to 2"), (seed, sealed, b"1 to 3"), (seed, sealed[:-1], b"1 to 2")):
        with pytest.raises(CodecError, match="does not open"):
            masks.unseal(*wrong)


# Shamir's secret sharing.


def test_a_secret_by_hand(monkeypatch):
    # 5 + 3 (x + 1) at 0, 1, 2: 8, 11, 14; and from two of them back to -1: 8 * 2 - 11 = 5.
    monkeypatch.setattr("secrets.randbelow", lambda prime: 3)
    shares = shamir.split((5).to_bytes(32, "big"), 2, [0, 1, 2])
    assert [int.from_bytes(share, "big") for share in shares.values()] == [8, 11, 14]
    assert shamir.combine({0: shares[0], 1: shares[1]}) == (5).to_bytes(32, "big")


@settings(max_examples=20, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.integers(1, 6), st.sets(st.integers(0, 2**60), min_size=6, max_size=9))
def test_any_of_the_shares_that_are_enough_give_the_secret_and_fewer_do_not(secret, threshold, points):
    shares = shamir.split(secret, threshold, points)
    some = dict(sorted(shares.items())[-threshold:])
    assert shamir.combine(some) == secret
    if threshold > 1:
        few = dict(list(some.items())[1:])
        with contextlib.suppress(CodecError):  # it may not even be as long as a secret
            assert shamir.combine(few) != secret


def test_a_threshold_beyond_the_shares_is_refused():
    with pytest.raises(ValueError, match="threshold must be 1 to 2"):
        shamir.split(bytes(32), 3, [0, 1])


# The protocol, without a network.


class Federation:
    """Clients with a vector each, of whom some are lost in a phase; a server that asks them."""

    def __init__(self, folder, count, *, robust, least=3, lost=None, size=5):
        rng = np.random.default_rng(0)
        self.folder, self.lost, self.rules = folder, lost or {}, Rules(least, robust, TOPIC)
        self.vectors = {k: rng.integers(-1000, 1000, size) for k in range(count)}
        self.frames = {}

    def client(self, key, frame, rules=None):
        def vector(question):
            assert question == QUESTION
            return Vector(self.vectors[key], QUERY)

        return respond(key, self.folder, frame, rules or self.rules, vector)

    def ask(self, phase, questions):
        self.frames[phase] = questions
        gone = {key for key, at in self.lost.items() if at <= phase}
        return {key: self.client(key, frame) for key, frame in questions.items() if key not in gone}

    def run(self):
        keys = self.ask(KEYS, dict.fromkeys(self.vectors, server.ask_keys(QUERY)))
        members = server.roster([server.read_card(frame) for frame in keys.values()], self.rules)
        shares = None
        if self.rules.robust:
            answers = self.ask(SHARES, server.ask_shares(QUERY, members))
            shares = {key: server.read_shares(frame) for key, frame in answers.items()}
        questions = server.ask_masked(QUERY, QUESTION, members, shares)
        size = len(self.vectors[0])
        self.words = {k: server.read_masked(f, size) for k, f in self.ask(MASKED, questions).items()}
        asked = list(questions)
        answers = self.ask(UNMASK, server.ask_unmask(QUERY, members, asked, list(self.words)))
        said = {key: server.read_unmask(frame) for key, frame in answers.items()}
        return server.total(self.words, asked, members, said, self.rules, QUERY.round)

    def expected(self):
        return sum(v for k, v in self.vectors.items() if self.lost.get(k, 99) > MASKED)


@pytest.mark.parametrize("robust", [False, True])
@pytest.mark.parametrize("lost", [{}, {1: KEYS}, {0: MASKED}, {1: KEYS, 4: MASKED, 9: MASKED}])
def test_the_sum_is_exact_whoever_is_lost_before_its_vector_came(tmp_path, robust, lost):
    play = Federation(tmp_path, 12, robust=robust, lost=lost)
    assert (play.run() == play.expected()).all()
    assert all((masks.signed(words) != play.vectors[k]).any() for k, words in play.words.items())


def test_a_robust_sum_survives_losses_in_every_phase(tmp_path):
    play = Federation(tmp_path, 12, robust=True, lost={1: SHARES, 4: MASKED, 7: UNMASK})
    assert (play.run() == play.expected()).all()


def test_who_seals_nonsense_spoils_the_sum_and_who_forgets_somebody_is_left_out(tmp_path, monkeypatch):
    play = Federation(tmp_path, 12, robust=True)
    real, seal = play.client, masks.seal

    def nonsense(key, frame):
        monkeypatch.setattr("fedkd.secagg.client.seal", lambda *a: bytes(160) if key == 5 else seal(*a))
        answer = real(key, frame)
        if key == 7 and frames.peek(frame).kind == SHARES:  # and this one leaves somebody out
            few = dict(list(server.read_shares(answer).items())[1:])
            answer = letters.write(SHARES, QUERY, letters.write_sealed(few), 7)
        return answer

    play.client = nonsense
    with pytest.raises(RoundError, match="1 shares of a secret of client 5, 9 needed"):
        play.run()
    assert sorted(play.words) == [0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11]


def test_a_strict_sum_is_lost_with_who_knows_what_takes_the_masks_off(tmp_path):
    play = Federation(tmp_path, 5, robust=False, lost={1: MASKED, 4: UNMASK})
    with pytest.raises(RoundError, match="client 4 did not say what it shares with client 1, who is gone"):
        play.run()


def test_a_robust_sum_is_lost_with_too_many(tmp_path):
    play = Federation(tmp_path, 6, robust=True, lost={4: UNMASK, 5: UNMASK})
    with pytest.raises(RoundError, match="4 shares of a secret of client 0, 5 needed"):
        play.run()


@pytest.mark.parametrize("robust", [False, True])
def test_many_clients_know_some_neighbors_each(tmp_path, robust):
    play = Federation(tmp_path, 110, robust=robust, lost={3: MASKED, 50: MASKED}, size=2)
    assert (play.run() == play.expected()).all()
    assert len(play.frames[MASKED][0]) < 30 * 200


# What a client refuses.


def frames_of(tmp_path, *, robust=False, count=4, **options):
    play = Federation(tmp_path, count, robust=robust, **options)
    play.run()
    return play


def again(play, kind, key=0):
    return play.client(key, play.frames[kind][key])


@pytest.mark.parametrize("robust", [False, True])
def test_the_same_question_gets_the_same_bytes_and_keys_are_good_for_one_vector(tmp_path, robust):
    play = frames_of(tmp_path, robust=robust)
    kinds = (SHARES, MASKED, UNMASK) if robust else (MASKED, UNMASK)
    for kind in kinds:
        assert again(play, kind) == again(play, kind)
    play.vectors[0] = play.vectors[0] + 1  # were it made anew, the difference would be in the open
    assert (server.read_masked(again(play, MASKED), 5) == play.words[0]).all()
    changed = frames.write(frames.peek(play.frames[MASKED][0]), b"\0" + QUESTION)
    with pytest.raises(PrivacyError, match="round 3 was answered already, and this is another question"):
        play.client(0, changed)
    first = letters.open_(again(play, KEYS), KEYS)[1].rest()
    assert first != letters.open_(again(play, KEYS, 1), KEYS)[1].rest()
    if not robust:  # new keys, and so new masks
        assert (server.read_masked(again(play, MASKED), 5) != play.words[0]).all()


def test_a_robust_round_that_is_begun_anew_has_new_keys_and_ends(tmp_path):
    play = Federation(tmp_path, 6, robust=True, lost={5: MASKED})
    before = play.ask(KEYS, dict.fromkeys(play.vectors, server.ask_keys(QUERY)))
    cards = [server.read_card(frame) for frame in before.values()]
    play.ask(SHARES, server.ask_shares(QUERY, server.roster(cards[:5], play.rules)))
    assert (play.run() == play.expected()).all()  # another roster, after a server that crashed
    assert again(play, KEYS) != before[0]


def test_keys_are_used_up_by_the_vector_even_if_power_fails_before_it_leaves(tmp_path):
    play, cards = start(tmp_path)

    def fails(question):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        respond(0, tmp_path, masked_question(cards[1:]), play.rules, fails)
    with pytest.raises(PrivacyError, match="round 3 was answered already"):
        play.client(0, masked_question(cards[1:]))


def test_a_vector_is_not_made_for_those_with_whom_nobody_can_agree(tmp_path):
    play, cards = start(tmp_path)
    empty = letters.card(2, bytes(32), cards[2].channel, masks.new_identity(), play.rules.about(3))
    made = []
    with pytest.raises(CodecError, match="nobody can agree"):
        respond(0, tmp_path, masked_question([cards[1], empty, cards[3]]), play.rules, made.append)
    assert not made


def start(tmp_path, count=4, *, robust=False, least=3):
    play = Federation(tmp_path, count, robust=robust, least=least)
    keys = play.ask(KEYS, dict.fromkeys(play.vectors, server.ask_keys(QUERY)))
    return play, [server.read_card(frame) for frame in keys.values()]


def masked_question(cards, count=None):
    body = frames.varint(count or len(cards) + 1) + letters.write_cards(cards)
    return letters.write(MASKED, QUERY, body + QUESTION)


def test_a_sum_of_too_few_gets_nothing(tmp_path):
    play, cards = start(tmp_path, 2)
    with pytest.raises(PrivacyError, match="2 clients take part, 3 needed"):
        play.client(0, masked_question(cards[1:]))
    with pytest.raises(PrivacyError, match="1 neighbors among 3 clients, expected 2"):
        play.client(0, masked_question(cards[1:], 3))
    with pytest.raises(RoundError, match="2 clients sent keys that can be used, 3 needed"):
        server.roster(cards, play.rules)


def test_nobody_appears_twice(tmp_path):
    play, cards = start(tmp_path)
    for wrong in ([cards[0], *cards[2:]], [cards[1], cards[2], cards[2]]):
        with pytest.raises((PrivacyError, CodecError), match="twice|two cards"):
            play.client(0, masked_question(wrong))
    copy = letters.card(2, cards[1].masks, cards[1].channel, masks.new_identity(), play.rules.about(3))
    with pytest.raises(PrivacyError, match="appears twice"):
        play.client(0, masked_question([cards[1], copy, cards[3]]))
    empty = letters.card(5, bytes(32), masks.public(masks.new_key()), masks.new_identity(), play.rules.about(3))
    other = letters.card(6, masks.public(masks.new_key()), cards[0].channel, masks.new_identity(), play.rules.about(2))
    assert server.sound([cards[0], cards[1], copy, empty], 3, play.rules) == [cards[0]]
    assert server.sound([cards[3], other], 3, play.rules) == [cards[3]]


def test_a_key_that_the_server_made_up_is_not_taken(tmp_path):
    play, cards = start(tmp_path)
    forged = letters.Card(2, masks.public(masks.new_key()), cards[2].channel, cards[2].identity, cards[2].signature)
    with pytest.raises(PrivacyError, match="has not signed"):
        play.client(0, masked_question([cards[1], forged, cards[3]]))
    old = letters.card(2, cards[2].masks, cards[2].channel, masks.new_identity(), play.rules.about(2))
    with pytest.raises(PrivacyError, match="has not signed"):
        play.client(0, masked_question([cards[1], old, cards[3]]))
    play.client(0, masked_question(cards[1:]))
    play.client(1, server.ask_keys(QUERY))
    other = letters.card(2, masks.public(masks.new_key()), cards[2].channel, masks.new_identity(), play.rules.about(3))
    _, cards = start(tmp_path)
    with pytest.raises(PrivacyError, match="client 2 has another identity than before .delete 0.pins if it is new"):
        play.client(0, masked_question([cards[1], other, cards[3]]))


def unmask_question(there, gone, count):
    body = letters.write_clients(there) + letters.write_clients(gone) + frames.varint(count)
    return letters.write(UNMASK, QUERY, body)


@pytest.mark.parametrize("robust", [False, True])
@pytest.mark.parametrize(
    ("there", "gone", "count"),
    [([0, 1], [2, 3], 2), ([1, 2, 3], [0], 3), ([0, 1, 2, 3], [3], 4), ([0, 1, 2], [], 3), ([0, 1], [2, 3], 4)],
)
def test_masks_are_not_taken_off_where_too_few_are_left_or_lists_cannot_be(tmp_path, robust, there, gone, count):
    play = Federation(tmp_path, 4, robust=robust, lost=dict.fromkeys(range(4), UNMASK))
    with pytest.raises((RoundError, AssertionError)):
        play.run()
        raise AssertionError
    with pytest.raises(PrivacyError, match="needed|cannot be|too few"):
        play.client(0, unmask_question(there, gone, count))


def test_of_each_neighbor_a_client_says_one_half_never_both(tmp_path):
    play = frames_of(tmp_path, robust=True, count=6, lost={5: MASKED})
    said = server.read_unmask(again(play, UNMASK))
    assert {len(share) for share in said.values()} == {shamir.SHARE}
    assert sorted(said) == [0, 1, 2, 3, 4, 5]
    with pytest.raises(PrivacyError, match="another question"):
        play.client(0, unmask_question([0, 1, 2, 3, 5], [4], 5))


def test_secrets_of_a_round_are_gone_when_it_is_over_and_only_their_owner_can_read_them(tmp_path):
    play = frames_of(tmp_path, robust=True)
    path = tmp_path / "0.round"
    text = path.read_bytes().decode("latin-1")
    assert '\\"own\\"' not in text and '\\"channel\\"' not in text and '\\"count\\"' in text
    assert path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "0.identity").stat().st_mode & 0o777 == 0o600
    assert json.loads((tmp_path / "0.pins").read_text()).keys() == {"1", "2", "3"}
    assert play.client(0, play.frames[UNMASK][0]) == again(play, UNMASK)


def test_questions_out_of_turn_are_refused(tmp_path):
    play, cards = start(tmp_path)
    with pytest.raises(CodecError, match="kind 4 is not expected"):
        play.client(0, letters.write(SHARES, QUERY, b"\4" + letters.write_cards(cards[1:])))
    with pytest.raises(CodecError, match="kind 6 is not expected"):
        play.client(0, unmask_question([0, 1, 2, 3], [], 4))
    with pytest.raises(PrivacyError, match="no keys for round 4"):
        play.client(0, letters.write(MASKED, Query(4, np.arange(4), 2, QUERY.fingerprint), b""))
    with pytest.raises(PrivacyError, match="no keys for round 3"):  # those of another run are none
        play.client(0, masked_question(cards[1:]), Rules(3, False, b"another run"))


def test_what_a_client_knows_of_a_round_may_be_lost(tmp_path):
    play, cards = start(tmp_path)
    (tmp_path / "0.round").write_bytes(b"torn")
    with pytest.raises(PrivacyError, match="no keys for round 3"):
        play.client(0, masked_question(cards[1:]))
    play.client(1, masked_question([cards[0], *cards[2:]]))
    (tmp_path / "1.pins").write_text("[1")
    play.client(1, server.ask_keys(QUERY))
    _, cards = start(tmp_path)
    with pytest.raises(PrivacyError, match="1.pins is damaged"):
        play.client(1, masked_question([cards[0], *cards[2:]]))


@pytest.mark.parametrize("kind", [KEYS, SHARES, MASKED, UNMASK])
def test_a_frame_that_is_cut_anywhere_is_refused_and_none_says_more_than_it_should(tmp_path, kind):
    play = frames_of(tmp_path, robust=True)
    frame = play.frames[kind][0]
    for end in range(0, len(frame), max(1, len(frame) // 40)):
        with pytest.raises((CodecError, PrivacyError)):
            play.client(0, frame[:end])
    assert Counter(frames.peek(f).kind for f in play.frames[kind].values()) == {kind: 4}
