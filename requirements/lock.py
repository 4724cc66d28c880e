"""Make the locks of the GPU environments: `python requirements/lock.py`, with uv 0.13 on the PATH (`pip install uv`).

Each is resolved for x86_64 and aarch64 (GB10, GH200); a pin that only one of them has carries a marker. Wheels only,
but for one package. Versions that a lock has stay; without it they start from the CPU's lock, which the tests run on.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PYTHON = "3.12"  # Ubuntu 24.04's and DGX OS 7's
MACHINES = ("x86_64", "aarch64")
GLIBC = "manylinux_2_35"  # Ubuntu 22.04 and later; llguidance's wheels need 2.31
SOURCE_ONLY = "antlr4-python3-runtime"  # pure Python, Hydra's; publishes no wheel
INPUTS = {
    "trainer": ["../pyproject.toml", "trainer-cuda.in", "--extra", "gpu", "--constraint", "dev.txt"],
    "teacher": ["teacher-cuda.in", "--override", "teacher-cuda.override"],
}
HEADER = """\
# Made by requirements/lock.py from {sources}: edit those.
# Python {python}, Linux, CUDA 13.0. Installed with --no-deps.
"""


def resolve(inputs: list[str], machine: str, seed: list[str]) -> list[str]:
    """Pins for one machine, `name==version`, sorted by name.

    Raises:
        subprocess.CalledProcessError: if there is no solution; uv has said why.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "lock.txt"
        out.write_text("\n".join(seed) + "\n")  # uv keeps the versions that its output file already has
        command = ["uv", "pip", "compile", *inputs, "--config-file", "uv.toml", "--output-file", str(out)]
        command += ["--python-version", PYTHON, "--python-platform", f"{machine}-{GLIBC}", "--only-binary", ":all:"]
        command += ["--no-binary", SOURCE_ONLY, "--no-header", "--no-annotate"]
        command += ["--quiet", "--no-python-downloads"]
        subprocess.run(command, cwd=HERE, check=True, stdout=subprocess.DEVNULL)
        return out.read_text().split()


def read_pins(path: Path) -> list[str]:
    """The pins of a lock, without comments and markers."""
    return [line.split(";")[0].strip() for line in path.read_text().splitlines() if line and not line.startswith("#")]


def lock(name: str) -> Path:
    """Write one environment's lock."""
    path = HERE / f"{name}-cuda.txt"
    seed = read_pins(path if path.is_file() else HERE / f"{name}-cpu.txt")
    sets = {machine: resolve(INPUTS[name], machine, seed) for machine in MACHINES}
    lines = []
    for pin in sorted({pin for pins in sets.values() for pin in pins}):
        machines = [machine for machine in MACHINES if pin in sets[machine]]
        marker = "" if len(machines) == len(MACHINES) else f' ; platform_machine == "{machines[0]}"'
        lines.append(pin + marker)
    sources = ", ".join(Path(word).name for word in INPUTS[name] if not word.startswith("--") and "." in word)
    path.write_text(HEADER.format(sources=sources, python=PYTHON) + "\n".join(lines) + "\n")
    return path


if __name__ == "__main__":
    for name in sys.argv[1:] or INPUTS:
        print(lock(name))
