"""What the fuzzer of `parsers.py` begins from: small valid values of every kind."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from verl_ext.sampling.answers import METADATA
from verl_ext.teacher.store.fingerprint import TeacherFingerprint
from verl_ext.teacher.store.store import ScoreStore
from verl_ext.teacher.types import Score

KEY = b"k" * 32


def parquet_of(*rows: dict[str, Any], said: bool = False) -> bytes:
    """`said`: with the metadata of answers."""
    sink, table = pa.BufferOutputStream(), pa.Table.from_pylist(list(rows))
    described = {METADATA: b'{"model": "m", "settings": {}}'} if said else {}
    pq.write_table(table.replace_schema_metadata(described), sink)
    return sink.getvalue().to_pybytes()


def sqlite_seed() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        store = ScoreStore(Path(folder), 1 << 20)
        store.put_many({KEY: SCORE})
        store.close()
        return store.path.read_bytes()


SCORE = Score(np.array([-1.0, -2.0], np.float32), np.ones((2, 2), np.int32), np.full((2, 2), -3, np.float32))
ROW = {
    "prompt": [{"role": "user", "content": "Good morning"}],
    "teacher_messages": [{"role": "system", "content": "Say it."}, {"role": "user", "content": "Good morning"}],
    "data_source": "language_id",
    "reward_model": {"style": "rule", "ground_truth": "en"},
    "extra_info": {"index": 0, "language": "en"},
}
CHAT = {"messages": [*ROW["teacher_messages"], {"role": "assistant", "content": "en"}], "label": "en"}
TENSOR = b'\x4e\0\0\0\0\0\0\0{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}' + b" " * 18 + b"0000"
META = {
    "input_token_logprobs": [[None, 5, None], [-1.0, 6, None], [-2.0, 7, None], [-1.5, 8, None], [-0.25, 9, None]],
    "input_top_logprobs": [None, *([[-1.0, 1, None], [-2.0, 2, None]] for _ in range(4))],
    "cached_tokens": 2,
}
VLLM_PLACES = [
    {str(token): {"logprob": -3.5, "rank": 9}, "1": {"logprob": -0.5, "rank": 1}, "2": {"logprob": -1.5, "rank": 2}}
    for token in (4, 5, 6, 7, 8, 9)
]
VLLM_CHOICE = {"index": 0, "text": "a", "prompt_logprobs": [None, *VLLM_PLACES]}
FINGERPRINT = TeacherFingerprint("ab", None, "float32", "auto", "sglang", "0.5.21")
OPENAI = {"choices": [{"message": {"content": "en"}, "finish_reason": "stop"}], "usage": {"completion_tokens": 2}}
MADE = {"settings": {"seed": 1, "hub": {"path": "a"}}, "files": {"made.txt": "0" * 64}}
STEP = {"step": 1, "stages": [["a", 1.0], ["end", 2.0]], "student": [[1.0, 2.0]], "teacher": []}
ANSWERS = ("Final Answer: en", "**en**", "The language is en, not de.", '{"label": "de"}', "<think>x</think> 4/5", "A")
