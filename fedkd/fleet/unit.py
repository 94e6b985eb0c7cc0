"""A systemd unit for a node that has joined: started at boot, restarted when it fails, and kept from all else."""

from __future__ import annotations

import os
from pathlib import Path

from fedkd.errors import ConfigError

ROOM = 1.25
"""A unit's memory over that of the node's own limit, which should speak first: it says what is wrong."""
MOST = "75%"
"""Memory of the machine for a node without a limit of its own: the rest of the machine survives it."""

UNIT = """\
[Unit]
Description=fedkd node in {plain_home}
Wants=network-online.target
After=network-online.target time-sync.target

[Service]
User={user}
WorkingDirectory={home}
Environment={remembers}
ExecStart={python} -P -m fedkd.fleet {home_argument}
Restart=on-failure
RestartSec=30
# 2 is bad input, which is as bad the next time; 130 is a node that was asked to stop.
RestartPreventExitStatus=2
SuccessExitStatus=130
Nice=10
MemoryMax={memory}

# The network, its own folders, and reading: nothing else.
CapabilityBoundingSet=
LockPersonality=yes
NoNewPrivileges=yes
PrivateDevices=yes
PrivateTmp=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHome=read-only
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectSystem=strict
ReadWritePaths={writes}
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
SystemCallFilter=@system-service
UMask=0077

[Install]
WantedBy=multi-user.target
"""


def unit(home: Path, *, python: Path, user: str, remembers: Path, memory: int | None = None) -> str:
    """Return the unit of the node in ``home``, as ``user``; ``memory`` is the node's own limit in bytes.

    ``remembers`` is where ledgers lie (``FEDKD_HOME``): said outright, so that a service spends from the same ones as
    its owner does by hand.
    """
    for path in (home, python, remembers):
        text = str(path)
        if not (path.is_absolute() and text.isprintable()) or any(letter in text for letter in "\"'\\"):
            raise ConfigError(f"cannot name {text!r} in a systemd unit; expected a whole path without quotes")
    limit = MOST if memory is None else f"{round(ROOM * memory / 2**20)}M"
    return UNIT.format(
        plain_home=_specifiers(home),
        user=user,
        home=_specifiers(home),
        remembers=f'"FEDKD_HOME={_specifiers(remembers)}"',
        python=_argument(python),
        home_argument=_argument(home),
        memory=limit,
        writes=" ".join(f'"-{_specifiers(path)}"' for path in dict.fromkeys((home, remembers))),
    )


def owner(home: Path) -> str:
    """Return the name of the user whose folder ``home`` is."""
    import pwd  # not there on Windows, which has no systemd either

    number = os.stat(home).st_uid
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _specifiers(path: Path) -> str:
    return str(path).replace("%", "%%")


def _argument(path: Path) -> str:
    return f'"{_specifiers(path).replace("$", "$$")}"'
