"""Export every model of the zoo: `python -m examples.zoo.export_all`. `make zoo` runs it."""

import argparse
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
REPOSITORY = Path(".zoo") / "model_repository"
# By the exporter's exit code; 3: the package that carries the weights is not installed.
OUTCOMES = {0: "ok", 3: "skipped"}


def main() -> None:
    """A line a model; exit code 1 where one failed. A model whose package is missing is skipped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="default: all")
    parser.add_argument("--repository", type=Path, default=REPOSITORY)
    args = parser.parse_args()
    specs = sorted(HERE.glob("*/*.toml"))
    if unknown := set(args.names) - {spec.stem for spec in specs}:
        parser.error(f"no such model: {', '.join(sorted(unknown))}")
    chosen = [spec for spec in specs if not args.names or spec.stem in args.names]
    outcomes = {spec.stem: export(spec, args.repository) for spec in chosen}
    there = sum(outcome == "ok" for outcome in outcomes.values())
    print(f"{there} of {len(chosen)} models are in {args.repository}")
    failed = [name for name, outcome in outcomes.items() if outcome == "FAILED"]
    if failed:
        sys.exit(f"not exported: {', '.join(failed)}")


def export(spec: Path, repository: Path) -> str:
    """Export one model with everything that its report then shows; how it went, in a word."""
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
    outcome = OUTCOMES.get(done.returncode, "FAILED")
    print(f"{outcome} {spec.stem} {took:.0f} s: {last}", flush=True)
    return outcome


if __name__ == "__main__":
    main()
