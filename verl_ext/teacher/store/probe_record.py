"""The log-probs that a teacher gives for fixed sequences, kept in a file: proof that it is still the same teacher.

What a file's hash proves is that the same bytes were loaded; the probe shows what a server does with them.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from verl_ext.run.files import write_atomically
from verl_ext.teacher.store.fingerprint import TeacherFingerprint
from verl_ext.teacher.types import Scorer, ScoreRequest, TeacherError

PROBE_SEED = 20260101
PROBE_SEQUENCES = 8
PROBE_TOKENS = 64


@dataclass(frozen=True)
class ProbeRecord:
    """A teacher's log-probs for the probe. `N` sequences of `P` tokens."""

    fingerprint: TeacherFingerprint
    """The teacher that was asked."""
    sequences: tuple[tuple[int, ...], ...] = ()
    """The token ids, (N, P). None where the fingerprint alone is recorded."""
    logprobs: tuple[tuple[float, ...], ...] = ()
    """Log-probs in nats of each sequence's tokens but the first, (N, P-1)."""

    def greatest_difference(self, other: "ProbeRecord") -> float:
        """Nats between the two at the token where they differ most.

        Raises:
            ValueError: if they are answers to different sequences.
        """
        if self.sequences != other.sequences or not self.sequences:
            raise ValueError("doctor.record: the probes are of different sequences; probe with those of the record")
        return float(np.abs(np.array(self.logprobs) - np.array(other.logprobs)).max())

    def to_json(self) -> str:
        """As JSON text that `from_json` reads exactly."""
        return json.dumps(
            {"fingerprint": self.fingerprint.to_dict(), "sequences": self.sequences, "logprobs": self.logprobs}
        )

    @classmethod
    def from_json(cls, text: str) -> "ProbeRecord":
        """The inverse of `to_json`.

        Raises:
            ValueError: if the text is not a record.
        """
        try:
            fields = json.loads(text)
            return cls(
                TeacherFingerprint.from_dict(fields["fingerprint"]),
                tuple(tuple(row) for row in fields["sequences"]),
                tuple(tuple(row) for row in fields["logprobs"]),
            )
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"not a record of a teacher ({error!r}); record it again") from error

    def save(self, path: Path) -> None:
        """Write the record atomically."""
        write_atomically(path, self.to_json() + "\n")

    @classmethod
    def load(cls, path: Path) -> "ProbeRecord":
        """Read the file that `save` wrote.

        Raises:
            FileNotFoundError: if it does not exist.
            ValueError: naming it, if it is something else.
        """
        try:
            return cls.from_json(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def probe_sequences(vocab_size: int) -> tuple[tuple[int, ...], ...]:
    """(8, 64) token ids below `vocab_size`, the same on every machine: RandomState's stream is frozen by NumPy."""
    ids = np.random.RandomState(PROBE_SEED).randint(0, vocab_size, (PROBE_SEQUENCES, PROBE_TOKENS))
    return tuple(tuple(row) for row in ids.tolist())


async def take_probe(
    scorer: Scorer, fingerprint: TeacherFingerprint, sequences: Sequence[Sequence[int]]
) -> ProbeRecord:
    """Ask `scorer`, which must stand before no store, for the log-probs of `sequences`.

    To check a recorded teacher give the record's `sequences`; to record one, `probe_sequences(vocab_size)`.

    Raises:
        TeacherError: if it does not score them.
    """
    outcomes = await scorer.score([ScoreRequest(ids[:1], ids[1:]) for ids in sequences])
    rows = []
    for outcome in outcomes:
        if isinstance(outcome, TeacherError):
            raise outcome
        rows.append(tuple(outcome.logprobs.tolist()))
    return ProbeRecord(fingerprint, tuple(tuple(ids) for ids in sequences), tuple(rows))
