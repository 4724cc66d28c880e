"""A task that needs a tool: sums that a tiny model cannot work out, and a calculator that can.

Both sides see the tool. The teacher is also told to use it; the student sees the sum alone. The held-out file asks
each sum three times, told apart by `data_source`: as the student is asked (`sums`), as the teacher is
(`sums_prompted`), and as the student is with no tool at hand (`sums_without_tool`, in rows of the single-turn loop).
"""

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from verl_ext.run.files import write_atomically

PROMPT = "Work it out with the calculator, then say the number alone.\n{text}"
LEAST, MOST = 10, 49
"""Numbers of a sum: it has two digits, as they have."""
HELDOUT_ROWS = 100
SEED = 0
TOOL_AGENT, SINGLE_TURN = "tool_agent", "single_turn_agent"
"""verl's names of its agent loops, for the column `agent_name`."""

CHAT_TEMPLATE = (
    "{%- if tools %}"
    "{{- '<|im_start|>system\\n# Tools\\n<tools>' }}"
    "{%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}"
    '{{- \'\\n</tools>\\nA call: <tool_call>\\n{"name": NAME, "arguments": OBJECT}\\n</tool_call><|im_end|>\\n\' }}'
    "{%- endif %}"
    "{%- for message in messages %}"
    "{%- if message.role == 'tool' %}"
    "{{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}"
    "{%- else %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content }}"
    "{%- for call in message.tool_calls or [] %}"
    "{{- '<tool_call>\\n{\"name\": ' + (call.function.name | tojson) + ', \"arguments\": ' }}"
    "{{- (call.function.arguments | tojson) + '}\\n</tool_call>' }}"
    "{%- endfor %}"
    "{{- '<|im_end|>\\n' }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
"""ChatML with tools in the hermes form, as the Qwen3 instruct models write it, in fewer words."""


def sums() -> list[str]:
    """Every sum, such as `12+34`, in a random order that is always the same; the first HELDOUT_ROWS are held out."""
    numbers = range(LEAST, MOST + 1)
    return random.Random(SEED).sample(found := [f"{a}+{b}" for a in numbers for b in numbers], len(found))


def value(text: str) -> str:
    """The right answer to a sum."""
    return str(sum(map(int, text.split("+"))))


def call(text: str) -> str:
    """The answer that asks the calculator for a sum."""
    return f'<tool_call>\n{{"name": "calculator", "arguments": {{"expression": "{text}"}}}}\n</tool_call>'


def row(index: int, text: str, split: str, data_source: str = "sums", agent: str = TOOL_AGENT) -> dict[str, Any]:
    """A row as `recipe.create_data` makes them, and the loop that answers it."""
    told = [{"role": "user", "content": PROMPT.replace("{text}", text)}]
    return {
        "prompt": told if data_source == "sums_prompted" else [{"role": "user", "content": text}],
        "teacher_messages": told,
        "label": value(text),
        "data_source": data_source,
        "agent_name": agent,
        "reward_model": {"style": "rule", "ground_truth": value(text)},
        "extra_info": {"index": index, "split": split, "group": index, "slice": "sums", "language": ""},
    }


def write_rows(folder: Path) -> dict[str, int]:
    """Write train.parquet and heldout.parquet; the rows of each."""
    texts = list(enumerate(sums()))
    held, train = texts[:HELDOUT_ROWS], texts[HELDOUT_ROWS:]
    parts = {
        "train": [row(index, text, "train") for index, text in train],
        "heldout": [
            row(index + place * len(texts), text, "heldout", *kind)
            for place, kind in enumerate([("sums",), ("sums_prompted",), ("sums_without_tool", SINGLE_TURN)])
            for index, text in held
        ],
    }
    for name, part in parts.items():
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(part), sink)
        write_atomically(folder / f"{name}.parquet", sink.getvalue().to_pybytes())
    return {name: len(part) for name, part in parts.items()}
