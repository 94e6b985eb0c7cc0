"""``python -m fedkd.fleet FOLDER``: the node that ``fedkd join`` has set up, in a process that loads little else."""

import os
import sys

FRUGAL = {
    "OMP_NUM_THREADS": "1",  # each more thread of linear algebra would keep memory of its own
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYDANTIC_DISABLE_PLUGINS": "__all__",  # or it looks through every package that is installed
}


def main() -> None:
    """Run the node, with an environment that is read when libraries are loaded, so before that."""
    for name, value in FRUGAL.items():
        os.environ.setdefault(name, value)
    from fedkd.fleet.resident import main as run

    sys.exit(run())


if __name__ == "__main__":
    main()
