"""Are two mathematical answers equal? math-verify decides, in a process of its own.

sympy can work for hours on a short answer (`9^{9^{9}}`). math-verify's own limit is a signal, which only a main thread
can set and which does not stop C code. So its limits are off here; a process that overruns ours is ended and replaced.
"""

import atexit
import logging
import multiprocessing
import threading
from multiprocessing.pool import Pool

START_S = 120.0  # until the process has imported sympy; 1 s on an idle machine


def same_value(answer: str, truth: str) -> bool:
    """What the process runs: both read as LaTeX and compared as math-verify does. No time limit."""
    from math_verify import LatexExtractionConfig, parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its limits are off
    right, given = (
        parse(f"\\boxed{{{text}}}", [LatexExtractionConfig()], parsing_timeout=0) for text in (truth, answer)
    )
    return verify(right, given, timeout_seconds=0)


class MathVerifier:
    """Compares one pair of answers at a time, for any thread. The process starts with the first."""

    def __init__(self, timeout_s: float = 5.0) -> None:
        """`timeout_s`: seconds after which a pair counts as different, > 0."""
        self.timeout_s = timeout_s
        self._lock = threading.Lock()
        self._pool: Pool | None = None

    def equal(self, answer: str, truth: str) -> bool:
        """Whether `answer` has the value of `truth`, both LaTeX without a box."""
        with self._lock:
            pool = self._pool = self._pool or start()
            try:
                return pool.apply_async(same_value, (answer, truth)).get(self.timeout_s)
            except multiprocessing.TimeoutError:
                print(f"math-verify: gave up on {answer[:40]!r} after {self.timeout_s} s; it counts as wrong")
                pool.terminate()
                atexit.unregister(pool.terminate)
                self._pool = None
                return False


def start() -> Pool:
    """A process that has compared something: what it imports is in no answer's time.

    Raises:
        RuntimeError: if it cannot, within START_S.
    """
    pool = multiprocessing.get_context("spawn").Pool(1)
    atexit.register(pool.terminate)  # left to the interpreter's end, it complains
    try:
        pool.apply_async(same_value, ("1", "1")).get(START_S)
    except multiprocessing.TimeoutError:
        pool.terminate()
        raise RuntimeError(f"math-verify did not start within {START_S:.0f} s") from None
    return pool
