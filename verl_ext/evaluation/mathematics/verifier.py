"""Compares answers in a process of its own, which forks once a pair.

sympy can work for hours on a short answer, in C code that no signal stops. A fork costs milliseconds and has all that
its parent imported: one that overruns its time is ended, and nothing has to start again. No `multiprocessing`: it would
import the caller's main module again, which a plain script need not survive.
"""

import atexit
import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from itertools import accumulate
from typing import IO, Any

from verl_ext.evaluation.mathematics.spelling import one_spelling
from verl_ext.run.visible import print

START_S = 120.0  # until the process has imported sympy; 2 s on an idle machine
LONGEST = 2000  # characters of an answer that is read as mathematics; a longer or deeper one is compared as text
DEEPEST = 30  # brackets within brackets
MEMORY = 2 << 30  # bytes of address space for one pair
PLAIN = re.compile(r"([+-]?)(?:\\frac\{(\d+)\}\{(\d+)\}|(\d+)/(\d+)|(\d+\.?\d*|\.\d+))")
WARM = (
    ("2\\frac{1}{2}x^{2}-(x-1)(x+1)", "1.5x_{1}+\\sqrt[3]{2}"),
    ("\\frac{\\sqrt{2}}{2}", "\\sin\\frac{\\pi}{4}"),
    ("-\\frac{3\\pi}{4}+2i", "|a|\\cdot\\log_{2}3"),
    ("x^2>1.5", "(1,\\infty)\\cup(-\\infty,-1)"),
    ("n!/2^{n}", "\\binom{n}{2}"),
)
SERVE = "import sys; sys.path[:] = {path}; from verl_ext.evaluation.mathematics.verifier import serve; serve()"


VERDICT_BYTES = 64


class MathVerifier:
    """Compares one pair of answers at a time, for any thread. The process starts with the first pair that needs it."""

    def __init__(self, timeout_s: float = 4.0) -> None:
        """`timeout_s`: seconds after which a pair counts as different, > 0."""
        self.timeout_s = timeout_s
        self._lock = threading.Lock()
        self._server: subprocess.Popen[bytes] | None = None
        self._owner = 0

    @property
    def pid(self) -> int | None:
        """Of the process; None before it started."""
        return self._server.pid if self._server else None

    def equal(self, answer: str, truth: str) -> bool:
        """Whether `answer` is the same answer as `truth`, both without a box."""
        if any(len(text) > LONGEST or depth(text) > DEEPEST for text in (answer, truth)):
            return answer.strip() == truth.strip()
        texts = one_spelling(answer), one_spelling(truth)
        if not all(texts):
            return False
        if texts[0] == texts[1]:
            return True
        numbers = [plain_number(text) for text in texts]
        if None not in numbers:
            return numbers[0] == numbers[1]
        with self._lock:
            verdict = self._ask({"answer": answer, "truth": truth, "timeout_s": self.timeout_s})
        if verdict == "late":
            print(f"math: gave up on {answer[:40]!r} after {self.timeout_s} s; it counts as wrong")
        elif verdict not in ("same", "other", "lost"):  # the lost one is told of where it is noticed
            print(f"math: {verdict} over {answer[:40]!r}; it counts as wrong")
        return verdict == "same"

    def _ask(self, pair: dict[str, Any]) -> str:
        server = self._running()
        try:
            send(server.stdin, pair)
            return receive(server.stdout, self.timeout_s + 1)
        except (OSError, TimeoutError) as error:  # ended from outside, such as for memory
            print(f"math: the verifier is lost ({error}); {pair['answer'][:40]!r} counts as wrong")
            self.close()
            return "lost"

    def _running(self) -> subprocess.Popen[bytes]:
        # A fork of this process must not speak through the pipes of its parent.
        if self._server is None or self._owner != os.getpid() or self._server.poll() is not None:
            self._server = subprocess.Popen(
                [sys.executable, "-c", SERVE.format(path=sys.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            self._owner = os.getpid()
            atexit.register(self.close)
            receive(self._server.stdout, START_S)
        return self._server

    def close(self) -> None:
        """End the process, if this one started it; the next pair starts another."""
        server, self._server = self._server, None
        atexit.unregister(self.close)
        if server is not None and self._owner == os.getpid():
            server.kill()
            server.wait()
            for pipe in (server.stdin, server.stdout):
                if pipe is not None:
                    pipe.close()


def depth(text: str) -> int:
    """The most brackets that are open at once."""
    return max(accumulate((c in "([{") - (c in ")]}") for c in text), default=0)


def plain_number(text: str) -> Fraction | None:
    """An integer, a decimal or a fraction of integers; None for anything else."""
    match = PLAIN.fullmatch(text.removesuffix("."))
    if match is None:
        return None
    sign, top, bottom, left, right, whole = match.groups()
    if whole:
        value = Fraction(whole)
    elif int(bottom or right) == 0:
        return None
    else:
        value = Fraction(int(top or left), int(bottom or right))
    return -value if sign == "-" else value


def send(pipe: IO[bytes] | None, message: Any) -> None:
    assert pipe is not None  # Popen was asked for it
    pipe.write(json.dumps(message).encode() + b"\n")
    pipe.flush()


def receive(pipe: IO[bytes] | None, timeout_s: float) -> str:
    """The next line. TimeoutError if it does not come, OSError if the other side is gone."""
    assert pipe is not None  # Popen was asked for it
    if not select.select([pipe], [], [], timeout_s)[0]:
        raise TimeoutError(f"no answer within {timeout_s:.0f} s")
    line = pipe.readline()
    if not line:
        raise OSError("it ended")
    return json.loads(line)


def serve() -> None:
    """What the process runs: answers pairs until its input closes."""
    from verl_ext.evaluation.mathematics.equality import same_answer

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the caller decides
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no answer
    for pair in WARM:
        same_answer(*pair)  # the parser learns its grammar as it reads
    send(answers, "ready")
    for line in sys.stdin.buffer:
        pair = json.loads(line)
        send(answers, in_a_fork(pair["answer"], pair["truth"], pair["timeout_s"]))


def in_a_fork(answer: str, truth: str, timeout_s: float) -> str:
    """`same` or `other`; `late` after `timeout_s`; an error's name; `lost` if the fork ended otherwise."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        compare_and_exit(answer, truth, timeout_s, writing)
    os.close(writing)
    deadline = time.monotonic() + timeout_s
    in_time = select.select([reading], [], [], max(deadline - time.monotonic(), 0))[0]
    verdict = os.read(reading, VERDICT_BYTES).decode() if in_time else "late"
    os.close(reading)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return verdict or "lost"


def compare_and_exit(answer: str, truth: str, timeout_s: float, writing: int) -> None:
    """The fork's work; it never returns."""
    from verl_ext.evaluation.mathematics.equality import same_answer

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (int(timeout_s) + 1, int(timeout_s) + 1))  # also if the parent is gone
    try:
        os.write(writing, b"same" if same_answer(answer, truth) else b"other")
    except Exception as error:  # sympy raises anything; it is told of, and what cannot be compared is not the same
        os.write(writing, type(error).__name__.encode()[:VERDICT_BYTES])
    finally:
        os._exit(0)
