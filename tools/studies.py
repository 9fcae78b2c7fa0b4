"""Trains the studies of docs/studies/answers. What is finished in --work is not trained again.

    python tools/studies.py                             # all
    python tools/studies.py pooling filter-size         # these
    python tools/studies.py --ship                      # and puts the results where answers find them, data/studies
    convscope report --studies studies --answers full   # a report with them

A result names its design, the hash of its data and that of the code. It holds no times: `convscope ask` measures costs on
the machine it runs on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from convscope.studies.study import study

ROOT = Path(__file__).parents[1]
DESIGNS, RESULTS = ROOT / "docs" / "studies" / "answers", ROOT / "src" / "convscope" / "data" / "studies"


def main() -> int:
    """See the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="designs, without .toml; all by default")
    parser.add_argument("--work", type=Path, default=Path("studies"), help="folder of the records under way")
    parser.add_argument("--engine", default="process")
    parser.add_argument("--ship", action="store_true", help="copy the results to src/convscope/data/studies")
    given = parser.parse_args()
    failed = 0
    for name in given.names or sorted(path.stem for path in DESIGNS.glob("*.toml")):
        folder = given.work / name
        found = study(DESIGNS / f"{name}.toml", out=folder, engine=given.engine, latency=False)
        print(found, f"{found.seconds:.0f} s", flush=True)
        failed += len(found.failed)
        if given.ship and not found.failed:
            RESULTS.mkdir(exist_ok=True)
            (RESULTS / f"{name}.json").write_bytes((folder / "results.json").read_bytes())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
