"""`python -m benchmarks.frameworks install [NAME ...]`."""

from __future__ import annotations

import argparse
import sys

from benchmarks.frameworks import FRAMEWORKS, NotInstalled, install


def main() -> int:
    """Install what is asked for; return 0 also where some cannot be had.

    The comparison says of those that they were not measured, and why.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.frameworks")
    parser.add_argument("command", choices=["install"])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(FRAMEWORKS))
    names = parser.parse_args().names or FRAMEWORKS
    if unknown := set(names) - set(FRAMEWORKS):
        parser.error(f"no such framework: {', '.join(sorted(unknown))}")
    for name in names:
        print(f"{name}: ", end="", flush=True)
        try:
            install(name)
        except NotInstalled as error:
            print(error)
        else:
            print("installed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
