"""Every parser of ours on inputs that nobody wrote: seeded mutations of a corpus, a million in all.

python -m benchmarks.fuzz --executions 1000000 --seed 0 --json fuzz.json

An input is a mutated one of the corpus: bytes changed, cut, doubled, spliced, or a value of its JSON replaced by an odd
one. An input that ends where none has ended before (the lines of our code that its error passed, or the kind of what
was returned) joins the corpus, so that the next ones begin further in. A crash is an error that is not ours, a wrong
value, or no end within half a minute. `--corpus DIR` is read, `--save` writes what was added to it, and `--crashes DIR`
takes the inputs that crashed.
"""

import argparse
import base64
import contextlib
import json
import math
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.arms.parsers import ERRORS, PARSERS, Parser
from verl_ext.run.terminal import Terminal

CORPUS = Path("tests/corpus")
PATIENCE_S = 30
MEMORY = "/dev/shm"
"""Where files cost no disk, on Linux."""
LARGEST = 1 << 14
"""Bytes of an input; longer ones are cut."""
KEPT = 400
"""Inputs of a parser at most that are mutated further."""
TOKENS = (
    *(b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"-1", b"18446744073709551616", b"9" * 5000, b"0.1", b'""'),
    *(
        b"[" * 3000,
        b'{"a":' * 500,
        b"{}",
        b"[]",
        b'"\\ud800"',
        b"\\u0000",
        b"\0",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\r\n",
    ),
    *(
        b"\x1b[2J",
        "\u202e".encode(),
        "\u2028".encode(),
        b"../../etc/passwd",
        b"<think>",
        b"Final Answer: ",
        b"\\boxed{",
    ),
    *(b"${oc.env:HOME}", b"???", b",", b'"', b"\n", b"{", b"}", b"%}", b"{%", b"\xed\xa0\x80", b"\xf0\x9f\x98\x80"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**64, -(2**63), 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), ""),
    *("x", "\0", "1", "nan", "\ud800", "../x", "a" * 3000, [], {}, [None], [[]], {"role": "user"}, [{}], {"": ""}),
)


@dataclass
class Tally:
    """Of one parser."""

    inputs: list[bytes]
    executions: int = 0
    refused: int = 0
    crashes: dict[str, bytes] = field(default_factory=dict)
    """An input of each kind: the error and where it was raised."""
    endings: set[object] = field(default_factory=set)
    added: list[bytes] = field(default_factory=list)


def mutated(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """`data` changed in one to four places."""
    longest = len(data)
    for _ in range(chance.choice((1, 1, 2, 4))):
        if chance.random() < 0.75 and (changed := with_odd_value(data, chance)) is not None:
            data = changed
            continue
        start = chance.randrange(len(data) + 1)
        end = min(len(data), start + chance.choice((0, 1, 1, 2, 8, 64)))
        how = chance.randrange(5)
        if how == 0:
            new = bytes(chance.randrange(256) for _ in range(end - start or 1))
        elif how == 1:
            new = b""
        elif how == 2:
            new = data[start:end] * 2
        elif how == 3:
            other = chance.choice(others)
            begin = chance.randrange(len(other) + 1)
            new = other[begin : begin + chance.choice((1, 8, 64))]
        else:
            new = chance.choice(TOKENS)
        data = data[:start] + new + data[end:]
    return data[: max(LARGEST, longest)]


def with_odd_value(data: bytes, chance: random.Random) -> bytes | None:
    """`data` with one value of the JSON of one of its lines replaced, added or taken out; None where there is none."""
    parts = data.split(b"\n")
    place = chance.randrange(len(parts))
    start = min((parts[place].find(each) for each in (b"{", b"[") if each in parts[place]), default=-1)
    if start < 0:
        return None
    try:
        value = json.loads(parts[place][start:])
        spots = list(spots_of(value))
        holder, key = chance.choice(spots)
        if chance.random() < 0.2:
            del holder[key]
        elif chance.random() < 0.2 and isinstance(holder, dict):
            holder[chance.choice(("", "index", "role", "x", "messages", "system"))] = chance.choice(VALUES)
        else:
            holder[key] = chance.choice(VALUES)
        parts[place] = parts[place][:start] + json.dumps(value, ensure_ascii=chance.random() < 0.5).encode(
            errors="surrogatepass"
        )
    except (ValueError, IndexError, RecursionError):
        return None
    return b"\n".join(parts)


def spots_of(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a value in a JSON document."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from spots_of(value[key])


def execute(parser: Parser, data: bytes, scratch: Path, tally: Tally) -> None:
    """Run one input and note how it ended."""
    tally.executions += 1
    signal.alarm(PATIENCE_S)
    try:
        found = parser.run(data, scratch)
        ending: object = ("returned", type(found).__name__, len(repr(found)).bit_length())
    except Exception as error:  # a fuzzer looks for what nobody foresaw: all but ERRORS is a crash, kept and told
        where = [(Path(code.co_filename).name, line) for code, line in frames(error)]
        if type(error) not in ERRORS or not str(error):
            at = ":".join(map(str, where[-1])) if where else "nowhere"
            kind = f"{type(error).__name__} at {at}: {str(error)[:80]!r}"
            tally.crashes.setdefault(kind.partition(" position ")[0], data)
            return
        tally.refused += 1
        ending = (type(error).__name__, *where)
    finally:
        signal.alarm(0)
    if ending not in tally.endings:
        tally.endings.add(ending)
        tally.added.append(data)
        if len(tally.inputs) < KEPT:
            tally.inputs.append(data)


def frames(error: Exception) -> Iterator[tuple[Any, int]]:
    """Code and line of each frame of ours that an error passed."""
    for frame, line in traceback.walk_tb(error.__traceback__):
        if "verl_ext" in frame.f_code.co_filename or frame.f_code.co_filename.endswith("parsers.py"):
            yield frame.f_code, line


def late(_number: int, _frame: object) -> None:
    raise TimeoutError(f"no end within {PATIENCE_S} s")


def read_corpus(folder: Path, name: str) -> list[bytes]:
    """The kept inputs of a parser: a line each, in base64."""
    file = folder / file_of(name)
    return [base64.b64decode(line) for line in file.read_text().split()] if file.is_file() else []


def save_corpus(folder: Path, name: str, inputs: list[bytes], most: int = 512) -> None:
    """Those of at most `most` bytes: a corpus is for reading it in tests."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = sorted({data for data in inputs if len(data) <= most}, key=lambda data: (len(data), data))
    text = "".join(base64.b64encode(data).decode() + "\n" for data in kept if data)
    if text:
        (folder / file_of(name)).write_text(text)


def file_of(name: str) -> str:
    """Of a parser's inputs."""
    return re.sub(r"\W+", "_", name) + ".txt"


def keep_crashes(name: str, tally: Tally, folder: Path | None) -> None:
    """Say what crashed, and write the inputs into `folder`."""
    for number, (kind, data) in enumerate(tally.crashes.items()):
        print(f"crash: {name}: {kind}: {data[:80]!r}", flush=True)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}-{file_of(name)}").write_bytes(data)


def fuzz(executions: int, seed: int, corpus: Path, names: list[str], crashes: Path | None) -> dict[str, Tally]:
    """Run all parsers by their shares; inputs that crashed go into the folder `crashes`."""
    chance = random.Random(seed)
    tallies = {name: Tally([*PARSERS[name].seeds, *read_corpus(corpus, name)]) for name in names}
    whole = sum(PARSERS[name].share for name in names)
    signal.signal(signal.SIGALRM, late)
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as folder:
        for number, (name, tally) in enumerate(tallies.items()):
            scratch = Path(folder) / str(number)
            scratch.mkdir()
            started, wanted = time.monotonic(), math.ceil(executions * PARSERS[name].share / whole)
            for data in list(tally.inputs):
                execute(PARSERS[name], data, scratch, tally)
            while tally.executions < wanted:
                data = mutated(chance.choice(tally.inputs), tally.inputs, chance)
                execute(PARSERS[name], data, scratch, tally)
            seconds = time.monotonic() - started
            print(f"{name}: {tally.executions:,} in {seconds:.0f} s, {len(tally.crashes)} crashes", flush=True)
            keep_crashes(name, tally, crashes)
    return tallies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executions", type=int, default=1_000_000, help="of all parsers together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parser", action="append", choices=[*PARSERS], help="only this one; may be given again")
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="folder of kept inputs")
    parser.add_argument("--save", action="store_true", help="add inputs of new endings to the corpus")
    parser.add_argument("--crashes", type=Path, help="folder for inputs that crashed")
    parser.add_argument("--json", type=Path, help="write the table and the bars here")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    sys.set_int_max_str_digits(4300)
    tallies = fuzz(options.executions, options.seed, options.corpus, options.parser or [*PARSERS], options.crashes)
    table, rows = Table("parser", "executions", "refused", "endings", "crashes", title="fuzz"), []
    for name, tally in tallies.items():
        row = (name, tally.executions, tally.refused, len(tally.endings), len(tally.crashes))
        table.add_row(name, *(f"{value:,}" for value in row[1:]))
        rows.append(dict(zip(("parser", "executions", "refused", "endings", "crashes"), row, strict=True)))
        if options.save and tally.added:
            save_corpus(options.corpus, name, [*read_corpus(options.corpus, name), *tally.added])
    Terminal().print(table)
    executions, crashes = (sum(row[key] for row in rows) for key in ("executions", "crashes"))
    bars = [
        ("fuzz_executions", executions, options.executions, executions >= options.executions),
        ("fuzz_crashes", crashes, 0, not crashes),
    ]
    if options.json:
        options.json.write_text(json.dumps({"seed": options.seed, "rows": rows, "bars": bars}, indent=2) + "\n")
    for name, value, target, ok in bars:
        print(f"bar: {name} {value} {target} {'ok' if ok else 'short'}")
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    sys.exit(0 if all(ok for *_, ok in bars) else 1)


if __name__ == "__main__":
    main()
