"""Files of one JSON object a line, which a killed run may leave in the middle of one."""

from pathlib import Path


def end_of_lines(path: Path) -> int:
    """Bytes up to the end of the last finished line."""
    with path.open("rb") as file:
        return sum(len(line) for line in file if line.endswith(b"\n"))


def mend(run_dir: Path) -> list[str]:
    """Cut half a line off the end of each `.jsonl` of a run, to which the next would be glued; what to tell of it."""
    said = []
    for file in sorted(run_dir.glob("*.jsonl")):
        whole, size = end_of_lines(file), file.stat().st_size
        if whole < size:
            with file.open("rb+") as opened:
                opened.truncate(whole)
            said.append(f"{file}: its last line was cut in the middle; its {size - whole} bytes are removed")
    return said
