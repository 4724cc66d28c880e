"""How much of an answer is read: a server that never ends its answer must not fill the memory."""

ENTRY_BYTES = 256
"""Of one log-prob in JSON, with its token's id and text; it takes 30 to 90."""
SEQUENCE_BYTES, BESIDE_BYTES = 1 << 14, 1 << 20
"""Of what else an answer says of each sequence, and of all else, such as an error's text."""


def answer_bytes(sequences: int, entries: int) -> int:
    """Most bytes of an answer with `entries` log-probs of `sequences` sequences."""
    return BESIDE_BYTES + sequences * SEQUENCE_BYTES + entries * ENTRY_BYTES
