"""Export every model of the zoo: `python -m examples.zoo.export_all`. `make zoo` runs it."""

import argparse
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
REPOSITORY = Path(".zoo") / "model_repository"


def main() -> None:
    """A line a model; exit code 1 where one was not exported."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="default: all")
    parser.add_argument("--repository", type=Path, default=REPOSITORY)
    args = parser.parse_args()
    specs = sorted(HERE.glob("*/*.toml"))
    chosen = [spec for spec in specs if not args.names or spec.stem in args.names]
    failed = [spec.stem for spec in chosen if not export(spec, args.repository)]
    print(f"{len(chosen) - len(failed)} of {len(chosen)} models are in {args.repository}")
    if failed:
        sys.exit(f"not exported: {', '.join(failed)}")


def export(spec: Path, repository: Path) -> bool:
    """Export one model with everything that its report then shows; whether it worked."""
    began = time.perf_counter()
    log = repository.parent / "logs" / f"{spec.stem}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "gateway.cli", "export", str(spec), "--replace-config"]
    with log.open("w") as output:
        done = subprocess.run(
            [*command, "--repository", str(repository)], stdout=output, stderr=output, check=False
        )
    took = time.perf_counter() - began
    said = log.read_text("utf-8").strip().splitlines()
    last = said[-1] if said else "it said nothing"
    print(f"{'ok' if done.returncode == 0 else 'FAILED'} {spec.stem} {took:.0f} s: {last}")
    return done.returncode == 0


if __name__ == "__main__":
    main()
