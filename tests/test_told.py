"""What a server's terminal shows of Flower, how a slow start is told, and which certificate it goes on with."""

import pytest

from fedkd.serving import pki
from fedkd.serving.home import Home, Terms
from fedkd.serving.service import certificates_of
from fedkd.serving.told import Start, Transcript, is_flowers


class Lines:
    """A board that keeps what it is shown."""

    def __init__(self):
        self.lines = []

    def line(self, text):
        self.lines.append(str(text))


@pytest.mark.parametrize(
    ("line", "flowers"),
    [
        ("INFO :      Starting logstream for run_id `6694457640981886001`", True),
        ("INFO :", True),
        ("Using SuperLink: fedkd (127.0.0.1:43757)", True),
        ("Successfully installed fedkd to /home/me/.fedkd/serve/flower/flwr/apps/fedkd.fedkd.0.1.0.e8c5c1a6.", True),
        ("WARNING :   the disk is nearly full", False),
        ("ERROR :     ServerApp raised an exception", False),
        ("Traceback (most recent call last):", False),
        ("    1    96.5%   96.5%       -       -  9.85 kB    235 B  16.6 s", False),
        ("INFORMATION of our own", False),
    ],
)
def test_what_flower_does_is_told_from_what_a_reader_wants(line, flowers):
    assert is_flowers(line) is flowers


def test_all_lines_are_kept_and_flowers_are_not_shown(tmp_path):
    shown = []
    for told in (["INFO :  x", "round"], ["ERROR : no disk"]):  # a second run goes on in the same file
        with Transcript(tmp_path / "run.log", shown.append) as transcript:
            for line in told:
                transcript(line)
    assert shown == ["round", "ERROR : no disk"]
    assert (tmp_path / "run.log").read_text() == "INFO :  x\nround\nERROR : no disk\n"


def test_a_serverapp_that_is_started_again_is_one_line_for_each_time():
    class Control:
        moments = iter(
            [("", False), ("10:00", False), ("10:00", False), ("", False), ("10:31", False), ("10:31", True)]
        )

        def starting(self, run):
            assert run == "7"
            return next(self.moments)

    start, control = Start("7"), Control()
    told = [start.look(control) for _ in range(8)]  # when it runs, nobody is asked
    (line,) = filter(None, told)
    assert "did not start within the 30 s that Flower gives it" in line
    assert "attempt 2" in line


def test_thirty_seconds_is_what_flower_gives():
    from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL

    from fedkd.serving.told import CLAIM

    assert CLAIM == HEARTBEAT_DEFAULT_INTERVAL


def test_a_certificate_for_another_host_is_renewed_and_the_authority_stays(tmp_path):
    home, board = Home(tmp_path / "home"), Lines()
    first = certificates_of(home, Terms("", advertise="10.0.0.5"), board)
    before = first.ca.read_bytes(), first.certificate.read_bytes()
    certificates_of(home, Terms("", advertise="10.0.0.5"), board)
    assert len(board.lines) == 1  # made, and good as it is
    then = certificates_of(home, Terms("", advertise="10.0.0.9"), board)
    assert board.lines[1:] == [
        "renewed the certificate, which was not for 10.0.0.9; the authority stays, so nodes that joined trust this "
        "server as before"
    ]
    assert then.ca.read_bytes() == before[0]
    assert then.certificate.read_bytes() != before[1]
    assert all(pki.is_for(then, host) for host in ("10.0.0.5", "10.0.0.9", "127.0.0.1"))
