"""The README's sample of `make demo` and its picture, from a run of this commit.

    make demo | tee outputs/demo.log
    python -m benchmarks.readme_sample outputs/demo.log

Replaces what stands between the two marks in README.md, and docs/results/demo.svg.
"""

import argparse
import json
import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- benchmarks/readme_sample.py -->\n", "<!-- end -->"
SHOWN = re.compile(r"^\[ *[\d.]+ s\] (Ray is up|the teacher .*|the first step is done|step \d+/\d+ .*)$")
STEPS = 3  # that are shown of each end


def sample_of(log: str, summary: dict[str, float], commit: str) -> str:
    """The text between the marks."""
    lines = [line for line in log.splitlines() if SHOWN.match(line)]
    steps = [line for line in lines if "] step " in line]
    kept = [line for line in lines if line not in steps[STEPS:-1]]
    kept.insert(kept.index(steps[-1]), "...")
    rows = log.splitlines()
    start = next(number for number, line in enumerate(rows) if line.split()[:2] == ["arm", "prompt"])
    table = [line.rstrip() for line in rows[start:] if line.strip()][:5]
    return (
        f"The end of a real run (commit `{commit}`, 2 cores, environments already there; "
        f"{summary['seconds_total'] / 60:.0f} minutes in all):\n\n```\n" + "\n".join([*kept, "", *table]) + "\n```\n"
        "![reverse KL and reward by step, accuracy of base, teacher and student](docs/results/demo.svg)\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path, help="what `make demo` printed")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "demo", help="folder of the demo")
    parser.add_argument("--commit", default="HEAD", help="the one that ran")
    options = parser.parse_args()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", options.commit], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    text = sample_of(options.log.read_text(), json.loads((options.out / "summary.json").read_text()), commit)
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    readme.write_text(f"{before}{BEGIN}{text}{END}{rest.partition(END)[2]}")
    shutil.copy(options.out / "demo.svg", ROOT / "docs" / "results" / "demo.svg")


if __name__ == "__main__":
    main()
