"""Leave nothing behind a run, however it ended: `sweep.py MARK FOLDER LOGS`, started by `verl_ext.run.ray_session`.

Waits until the pipe on its standard input closes, which the run's driver does at its end, or the system does where the
driver was killed. Then it keeps the logs, kills every process that has MARK in its environment, and removes the shared
memory that those had mapped and FOLDER, their folder for temporary files. Reads the standard library alone: it starts
in an instant and lives as long as a run.
"""

import contextlib
import os
import re
import select
import shutil
import signal
import sys
import time
from pathlib import Path

MARK = "VERL_OPD_RUN"
"""Environment variable of every process of a run, with a value of its own."""
LOOK_S = 10.0  # between looks at which shared memory the run has mapped, where none is new
NEW_S = 0.5  # between looks at whether any is
END_S = 20.0  # for killed processes to be gone
LOG_BYTES = 64 * 2**20
"""Of all logs that are kept, about: each file's end, in equal shares."""
SMALLEST_SHARE = 64 * 2**10
SHARED_MEMORY = Path("/dev/shm")
WEIGHTS, BEING_MADE_S = "verl_weights_*", 2.0
SEGMENT = re.compile(rb"\s(/dev/shm/[^\n]+)$", re.MULTILINE)
DELETED = b" (deleted)"


def marked(mark: str) -> list[int]:
    """Ids of the living processes that began with `mark` in their environment; of this user's."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended while we looked, or another user's
            if wanted in (folder / "environ").read_bytes().split(b"\0") and int(folder.name) != os.getpid():
                found.append(int(folder.name))
    return found


def segments(pids: list[int]) -> set[str]:
    """Files in shared memory that these processes have mapped and that still have a name."""
    found: set[str] = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            names = SEGMENT.findall(Path(f"/proc/{pid}/maps").read_bytes())
            found |= {os.fsdecode(name) for name in names if not name.endswith(DELETED)}
    return found


def weights_on_no_way() -> set[str]:
    """verl's segments of new weights, one a sync, that are not just being made; no look need have seen them."""
    found = set()
    for file in SHARED_MEMORY.glob(WEIGHTS):
        with contextlib.suppress(FileNotFoundError):
            about = file.stat()
            if about.st_uid == os.getuid() and time.time() - about.st_mtime > BEING_MADE_S:
                found.add(str(file))
    return found


def free(mapped: set[str]) -> None:
    """Remove what nobody has mapped any more."""
    for name in mapped - segments([int(each.name) for each in Path("/proc").glob("[0-9]*")]):
        Path(name).unlink(missing_ok=True)


def group_members(group: int) -> list[int]:
    """Ids of the living processes of a process group (zombies left out: only their parent can end them)."""
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended while we looked
        if fields[0] != "Z" and int(fields[2]) == group:
            members.append(int(stat.parent.name))
    return members


def kill(mark: str) -> None:
    """Until none is left: one that is being started may start another."""
    deadline = time.monotonic() + END_S
    while (pids := marked(mark)) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def keep_logs(link: Path) -> None:
    """Put a folder in the place of the link to Ray's own: the end of each file, which says where some is left out."""
    if not link.is_symlink() or not link.is_dir():
        return
    files = sorted(file for file in link.rglob("*") if file.is_file() and not file.is_symlink())
    share = max(SMALLEST_SHARE, LOG_BYTES // max(1, len(files)))
    kept = link.with_name(f".{link.name}.{os.getpid()}.part")
    for file in files:
        target = kept / file.relative_to(link)
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError), file.open("rb") as source, target.open("wb") as copy:
            left_out = max(0, file.stat().st_size - share)
            source.seek(left_out)
            copy.write(f"[the first {left_out} bytes are left out]\n".encode() if left_out else b"")
            shutil.copyfileobj(source, copy)
    kept.mkdir(exist_ok=True)
    link.unlink()
    kept.rename(link)


def remove(path: Path) -> None:
    """A link, a folder or a file; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def main(mark: str, folder: Path, logs: Path) -> None:
    mapped: set[str] = set()
    known, next_look, ended = set(), 0.0, False
    while not ended:
        there = set(os.listdir(SHARED_MEMORY))
        if there - known or time.monotonic() > next_look:
            mapped |= segments(marked(mark))
            known, next_look = there, time.monotonic() + LOOK_S
        ended = bool(select.select([sys.stdin], [], [], NEW_S)[0])  # nobody writes there, so it is the pipe's end
    mapped |= segments(marked(mark))
    with contextlib.suppress(OSError):  # the run's folder is gone, or cannot be written: what follows is still done
        keep_logs(logs)
    kill(mark)
    free(mapped | weights_on_no_way())
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
