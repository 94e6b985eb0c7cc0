"""``python -m fedkd`` is the command line."""

import sys


def main() -> None:
    """Run the command line. Ctrl-C may come while it is being imported, which takes a moment."""
    try:
        from fedkd.commands.main import main as run
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
