"""The command `nextrl`, and `python -m nextrl` where that script is not on the path."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point. The command line is imported inside, since Ctrl-C may come before it is there."""
    try:
        from nextrl.cli import main as command

        command()
    except KeyboardInterrupt:
        if sys.stderr is not None:
            sys.stderr.write("\n")
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
