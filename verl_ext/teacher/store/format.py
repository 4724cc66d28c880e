"""How a score is named and written in the store: a key of 32 bytes and a value of plain little-endian arrays.

Value, in order: magic `OPDS` (4 bytes), format version (1 byte), 1 with top-K arrays, else 0 (1 byte), two zero bytes,
R and K (uint32 each), `logprobs` float32 (R), then with top-K arrays `top_ids` int32 (R, K) and `top_logprobs` float32
(R, K); last, 16 bytes of BLAKE2b over the key and all of these. Shapes as in `verl_ext/teacher/types.py`.
"""

import hashlib
import struct
from collections.abc import Sequence

import numpy as np

from verl_ext.teacher.types import Score, ScoreRequest

FORMAT_VERSION = 2
MAGIC = b"OPDS"
HEADER = struct.Struct("<4sBBxxII")
COUNT = struct.Struct("<Q")
CHECKSUM_BYTES = 16


class CorruptScoreError(ValueError):
    """These bytes are no score that was stored under this key."""


def score_key(fingerprint_id: str, request: ScoreRequest) -> bytes:
    """SHA-256, 32 bytes, of all that a score depends on. Every part is preceded by its length, so none can run over.

    A mask of None is the mask of all ones. `request.teacher` is a local name and does not count: the fingerprint does.
    """
    wanted = [1] * len(request.response_ids) if request.response_mask is None else request.response_mask
    parts: tuple[bytes, ...] = (
        fingerprint_id.encode(),
        _int64(request.prompt_ids),
        _int64(request.response_ids),
        np.asarray(wanted, dtype=bool).tobytes(),
        _int64([request.top_k]),
    )
    if request.support_ids is not None:  # as a part more, so that the keys of other requests stay what they were
        parts = (*parts, np.asarray(request.support_ids, dtype="<i4").tobytes())
    digest = hashlib.sha256(MAGIC + bytes([FORMAT_VERSION]))
    for part in parts:
        digest.update(COUNT.pack(len(part)))
        digest.update(part)
    return digest.digest()


def encode_score(key: bytes, score: Score) -> bytes:
    """The value to store under `key`."""
    columns = 0
    arrays = [score.logprobs.astype("<f4")]
    if score.top_ids is not None:
        assert score.top_logprobs is not None  # one without the other is no Score
        columns = score.top_ids.shape[1]
        arrays += [score.top_ids.astype("<i4"), score.top_logprobs.astype("<f4")]
    header = HEADER.pack(MAGIC, FORMAT_VERSION, score.top_ids is not None, len(score.logprobs), columns)
    body = b"".join([header, *(array.tobytes() for array in arrays)])
    return body + _checksum(key, body)


def decode_score(key: bytes, value: bytes) -> Score:
    """The score of `encode_score(key, score)`, with `from_store=True` and arrays of its own.

    Raises:
        CorruptScoreError: if a byte of it changed, some are missing, or it was stored under another key.
    """
    body = value[:-CHECKSUM_BYTES]
    if len(body) < HEADER.size or value[-CHECKSUM_BYTES:] != _checksum(key, body):
        raise CorruptScoreError(f"{len(value)} bytes with a wrong checksum")
    magic, version, has_top, length, columns = HEADER.unpack_from(body)
    if (magic, version) != (MAGIC, FORMAT_VERSION):
        raise CorruptScoreError(f"format {magic!r} {version}, expected {MAGIC!r} {FORMAT_VERSION}")
    at = HEADER.size

    def take(dtype: str, *shape: int) -> np.ndarray:
        nonlocal at
        count = int(np.prod(shape))
        array = np.frombuffer(body, f"<{dtype}", count, at).reshape(shape)
        at += array.nbytes
        return array.astype(dtype)  # a copy: torch warns of arrays that it may not write

    logprobs = take("f4", length)
    top_ids = take("i4", length, columns) if has_top else None
    top_logprobs = take("f4", length, columns) if has_top else None
    return Score(logprobs, top_ids, top_logprobs, from_store=True)


def _int64(ids: Sequence[int]) -> bytes:
    return np.asarray(ids, dtype="<i8").tobytes()


def _checksum(key: bytes, body: bytes) -> bytes:
    return hashlib.blake2b(key + body, digest_size=CHECKSUM_BYTES).digest()
