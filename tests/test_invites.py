"""Join codes and members: what lets a device in, how often, how long, and how it is put out again."""

import json
import threading

import pytest
from devices import Device

from fedkd.errors import AdmissionError, FedkdError
from fedkd.serving.invites import Registry


class Clock:
    now = 1_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def registry(tmp_path, clock):
    return Registry(tmp_path / "members.json", clock=clock)


def test_a_code_lets_in_one_device_once(registry):
    code = registry.invite()
    member = registry.admit(code, Device().pem, "pi")
    assert member.name == "pi"
    with pytest.raises(AdmissionError, match="this join code is used up, by the device that it was for: ask"):
        registry.admit(code, Device().pem, "other")
    with pytest.raises(AdmissionError, match="not known here: was all of the address copied"):
        registry.admit(code[:-1], Device().pem, "other")
    assert [m.name for m in registry.members()] == ["pi"]


def test_a_code_for_a_workshop_has_as_many_seats_as_it_says(registry):
    code = registry.invite(seats=3)
    names = [registry.admit(code, Device().pem, "phone").name for _ in range(3)]
    assert names == ["phone", "phone-2", "phone-3"]
    assert registry.seats_left() == 0
    registry.invite()
    with pytest.raises(AdmissionError, match="used up, by the 3 devices"):  # known also when there is a newer one
        registry.admit(code, Device().pem, "phone")


def test_a_code_ends_with_its_time(registry, clock):
    code = registry.invite(lifetime=60)
    clock.now += 59.9
    registry.admit(code, Device().pem, "in time")
    late = registry.invite(lifetime=60)
    clock.now += 60 + 75
    with pytest.raises(AdmissionError, match="expired 1 min 15 s ago: ask"):
        registry.admit(late, Device().pem, "late")


def test_the_same_device_may_ask_again_and_takes_no_second_seat(registry, clock):
    code, device = registry.invite(seats=2), Device()
    first = registry.admit(code, device.pem, "pi")
    clock.now += 10_000  # the code is long gone; it was let in by it all the same
    assert registry.admit(code, device.pem, "pi") == first
    assert registry.admit(registry.invite(), device.pem, "pi") == first
    assert registry.seats_left() == 1
    with pytest.raises(AdmissionError):
        registry.admit("another code", device.pem, "pi")


def test_a_revoked_key_stays_out_with_any_code(registry):
    code, device = registry.invite(seats=5), Device()
    registry.admit(code, device.pem, "pi")
    assert registry.revoke("pi").revoked is not None
    for some in (code, registry.invite()):
        with pytest.raises(AdmissionError, match="revoked by the server's owner"):
            registry.admit(some, device.pem, "pi")
    with pytest.raises(FedkdError, match="was revoked, as 'pi'"):
        registry.add(device.pem, "pi")


def test_another_process_sees_a_revocation_at_once(registry, tmp_path, clock):
    device = Device()
    registry.admit(registry.invite(), device.pem, "pi")
    Registry(tmp_path / "members.json", clock=clock).revoke("pi")
    assert registry.member(device.pem).revoked is not None


def test_a_member_is_found_by_name_node_id_or_mark_and_nearly(registry):
    devices = [Device() for _ in range(3)]
    for i, device in enumerate(devices):
        registry.add(device.pem, f"node{i}")
    registry.settle(devices[1].pem.decode(), "1234567")
    marks = [member.mark for member in registry.members()]
    assert registry.revoke("node0").key == devices[0].pem.decode()
    assert registry.revoke("1234567").name == "node1"
    assert registry.revoke(marks[2]).name == "node2"
    with pytest.raises(FedkdError, match=r"no node 'nod1'\. Did you mean 'node1'\?"):
        registry.revoke("nod1")
    with pytest.raises(FedkdError, match="no node ''"):
        registry.revoke("")


@pytest.mark.parametrize("name", ["1234567", " 0 ", "abcdef012345", "ABCDEF012345", "123456789012"])
def test_no_device_takes_a_name_by_which_another_might_be_meant(registry, name):
    assert registry.add(Device().pem, name).name == f"node-{name.strip()}"
    assert registry.add(Device().pem, "abcdef01234").name == "abcdef01234"


def test_a_word_that_means_two_nodes_revokes_neither(registry):
    device, other = Device(), Device()
    registry.add(device.pem, "first")
    registry.settle(device.pem.decode(), "1234567")
    registry.add(other.pem, "second")
    registry.path.write_text(registry.path.read_text().replace('"second"', '"1234567"'))  # by an earlier fedkd
    with pytest.raises(FedkdError, match=r"'1234567' may be 'first' \(key .*, id 1234567\), '1234567' \(key"):
        registry.revoke("1234567")
    assert all(member.revoked is None for member in registry.members())
    assert registry.revoke(registry.member(other.pem).mark).key == other.pem.decode()
    assert registry.revoke("1234567").name == "first"  # the other one is out


def test_who_is_asking_is_known_while_another_writes(registry, tmp_path, clock):
    device, later = Device(), Device()
    registry.add(device.pem, "pi")
    found = []
    with registry._changing():  # a slow disk, or another process that holds the file
        asking = threading.Thread(target=lambda: found.append(registry.member(device.pem).name), daemon=True)
        asking.start()
        asking.join(timeout=5)
        assert found == ["pi"]
    Registry(tmp_path / "members.json", clock=clock).add(later.pem, "later")
    assert registry.member(later.pem).name == "later"
    assert [member.name for member in registry.members()] == ["pi", "later"]


def test_an_admission_that_came_to_nothing_gives_the_seat_back(registry):
    code, device = registry.invite(), Device()
    member = registry.admit(code, device.pem, "pi")
    registry.withdraw(member.key)
    assert registry.members() == ()
    assert registry.admit(code, device.pem, "pi").name == "pi"
    registry.settle(member.key, "7")
    registry.withdraw(member.key)  # the SuperLink knows it: too late
    assert registry.member(device.pem).node_id == "7"


def test_the_file_tells_no_code_and_only_its_owner_may_read_it(registry, tmp_path):
    code = registry.invite()
    registry.admit(code, Device().pem, "pi")
    path = tmp_path / "members.json"
    assert code not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_damaged_or_newer_file_is_one_line_and_stays_as_it_is(registry, tmp_path):
    path = tmp_path / "members.json"
    for text, message in [("{", "is damaged"), (json.dumps({"format": 9}), "has format 9, this fedkd reads 1")]:
        path.write_text(text)
        with pytest.raises(FedkdError, match=message):
            Registry(path)
        with pytest.raises(FedkdError, match=message):
            registry.invite()
        assert path.read_text() == text


def test_many_at_once_take_each_seat_once(registry, tmp_path, clock):
    code = registry.invite(seats=5)
    others = [Registry(tmp_path / "members.json", clock=clock) for _ in range(8)]
    let_in, turned_away = [], []

    def come(own):
        try:
            let_in.append(own.admit(code, Device().pem, "phone").name)
        except AdmissionError:
            turned_away.append(1)

    threads = [threading.Thread(target=come, args=(own,)) for own in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(set(let_in)), len(turned_away)) == (5, 3)
    assert len(Registry(tmp_path / "members.json").members()) == 5


def test_a_name_is_made_fit_to_print(registry):
    assert registry.add(Device().pem, "  a\nb\x1b[31m  ").name == "ab[31m"
    assert registry.add(Device().pem, "\x00").name == "node"
    assert len(registry.add(Device().pem, "x" * 200).name) == 40
