"""A Raspberry Pi without one: Debian for arm64, real aarch64 wheels, and an emulated Cortex-A72 (that of a Pi 4).

It proves that wheels install, code runs and numbers agree on that processor. Of speed and memory it says nothing.
Made once and kept in ``~/.cache/fedkd/arm`` (FEDKD_ARM names another folder). Needs mmdebstrap and Debian's packages.
"""

import compileall
import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("FEDKD_ARM") or Path.home() / ".cache" / "fedkd" / "arm")
SYSTEM = "python3.11,libpython3.11-stdlib,libgomp1,libstdc++6,libssl3,ca-certificates"
PLATFORM = ("--python-platform", "aarch64-manylinux_2_28", "--python-version", "3.11")
TIMEOUT = 300


class Unavailable(Exception):
    """This machine cannot become one of the other kind."""


@dataclass(frozen=True)
class Arm:
    """An emulated machine: the emulator, the folder of its system, and that of each set of packages."""

    emulator: Path
    system: Path
    node: Path
    onnx: Path

    def python(self, *words, packages=(), folder=None, **options):
        """Start its Python; ``packages`` are folders to import from, the first wins."""
        environment = {
            "HOME": str(folder or self.system / "root"),
            "PATH": "/usr/bin:/bin",
            "QEMU_CPU": "cortex-a72",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(map(str, packages)),
        }
        command = [self.emulator, "-L", self.system, self.system / "usr/bin/python3.11", *words]
        return subprocess.Popen(command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, **options)


def machine():
    """Return the machine, made if there is none yet (half a minute); raise :class:`Unavailable` with the reason."""
    recipe = [Path(__file__), ROOT / "requirements-node.txt", ROOT / "constraints.txt"]
    folder = CACHE / hashlib.sha256(b"".join(path.read_bytes() for path in recipe)).hexdigest()[:16]
    if not folder.exists():
        if shutil.which("mmdebstrap") is None:
            raise Unavailable("mmdebstrap is not installed: apt-get install -y mmdebstrap")
        shutil.rmtree(CACHE, ignore_errors=True)
        CACHE.mkdir(parents=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as name:
            _make(Path(name))
            os.rename(name, folder)
            os.mkdir(name)  # for the context to remove
    return Arm(folder / "qemu-aarch64", folder / "system", folder / "node", folder / "onnx")


def install_fedkd(folder):
    """Install this checkout into ``folder``, without what it depends on."""
    _run("uv", "pip", "install", "-q", *PLATFORM, "--no-deps", "--target", folder, ROOT)
    compileall.compile_dir(folder, quiet=2)


def _make(folder):
    # The emulator of bookworm cannot load ONNX Runtime, trixie's can; it is one static file of its system.
    _run("mmdebstrap", "--quiet", "--variant=extract", "--include=qemu-user", "trixie", folder / "host")
    shutil.copy2(folder / "host/usr/bin/qemu-aarch64", folder / "qemu-aarch64")
    shutil.rmtree(folder / "host")
    extract = ("mmdebstrap", "--quiet", "--variant=extract", "--arch=arm64")
    _run(*extract, f"--include={SYSTEM}", "bookworm", folder / "system")
    install = ("uv", "pip", "install", "-q", *PLATFORM, "--only-binary", ":all:", "-c", ROOT / "constraints.txt")
    _run(*install, "--target", folder / "node", "-r", ROOT / "requirements-node.txt")
    _run(*install, "--target", folder / "onnx", "onnxruntime", "scikit-learn")
    for part in ("node", "onnx/onnxruntime", "system/usr/lib/python3.11"):  # what is slowest to do emulated
        compileall.compile_dir(folder / part, quiet=2)


def _run(*words):
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=TIMEOUT, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()[-1]
        raise Unavailable(f"{words[0]} failed: {said}")
