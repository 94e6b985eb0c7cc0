"""``python -m fedkd.fleet FOLDER``: the node that ``fedkd join`` has set up, in a process that loads little else."""

import os
import sys

LIBRARIES = ("OMP", "OPENBLAS", "MKL")


def main() -> None:
    """Run the node with one thread for linear algebra: each more would keep memory of its own."""
    for library in LIBRARIES:  # read when numpy is loaded, so before that
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")
    from fedkd.fleet.resident import main as run

    sys.exit(run())


if __name__ == "__main__":
    main()
