"""Rows between TransferQueue, where a step's samples are, and the replay buffer.

`R` response tokens of a row; other shapes as in `storage.py`.
"""

import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transfer_queue as tq
from transfer_queue import KVBatchMeta
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from verl_ext.trainer.queue_writer import OLD, ROLLOUT
from verl_ext.trainer.replay.storage import Rows, spans

FIELDS = ["input_ids", "response_mask", ROLLOUT, "teacher_logprobs", "rm_scores"]
REPLAYED = "replayed"
TOP_FIELDS = ["teacher_top_ids", "teacher_top_logprobs"]


def take(batch: Any, places: Sequence[int], truncated: Sequence[bool], *, top: bool) -> Rows:
    """The samples at these places of a batch, as they were sampled and scored; `top`, with the teacher's top tokens.

    In the order of their tokens and not in that in which they arrived, so that a repeated run draws the same.
    """
    keys = [batch.keys[place] for place in places]
    tags = [batch.tags[place] for place in places]
    names = FIELDS + TOP_FIELDS * top
    data: Any = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=names)
    lengths_B = np.array([tag["seq_len"] for tag in tags], dtype=np.int64)
    prompt_lengths_B = np.array([tag["prompt_len"] for tag in tags], dtype=np.int64)
    ids_N = data["input_ids"].values()
    response = torch.from_numpy(
        spans(np.cumsum(lengths_B) - lengths_B + prompt_lengths_B, lengths_B - prompt_lengths_B)
    )

    def along_rows(name: str) -> torch.Tensor:
        values = data[name].values()
        return torch.zeros(len(ids_N), *values.shape[1:], dtype=values.dtype).index_put((response,), values)

    rows = Rows(
        token_ids_N=ids_N.int(),
        rollout_logprobs_N=along_rows(ROLLOUT),
        teacher_logprobs_N=along_rows("teacher_logprobs"),
        mask_N=along_rows("response_mask").bool(),
        top_ids_NK=along_rows("teacher_top_ids") if top else torch.zeros(len(ids_N), 0, dtype=torch.int32),
        top_logprobs_NK=along_rows("teacher_top_logprobs") if top else torch.zeros(len(ids_N), 0),
        lengths_B=lengths_B,
        prompt_lengths_B=prompt_lengths_B,
        rewards_B=np.array([row.sum().item() for row in data["rm_scores"].unbind()]),
        truncated_B=np.array(truncated, dtype=bool),
        first_versions_B=np.array([tag["min_global_steps"] for tag in tags]),
        last_versions_B=np.array([tag["max_global_steps"] for tag in tags]),
    )
    of_rows = np.split(rows.token_ids_N.numpy(), np.cumsum(lengths_B)[:-1])
    return rows.select(sorted(range(len(rows)), key=lambda row: of_rows[row].tobytes()))


def put(rows: Rows, partition_id: str, tag: str = REPLAYED) -> KVBatchMeta:
    """Rows under new keys, with the fields and tags that verl's step reads, and the tag `tag`, which their keys begin
    with (less its underscores: verl takes a key apart at those)."""
    prefix = tag.replace("_", "")
    ends = np.cumsum(rows.lengths_B, dtype=np.int64)
    keys, fields, tags = [], [], []
    for row, end in enumerate(ends.tolist()):
        length, prompt = int(rows.lengths_B[row]), int(rows.prompt_lengths_B[row])
        begin, response = end - length, slice(end - length + prompt, end)
        uid, ids = f"{prefix}{uuid.uuid4().hex}", rows.token_ids_N[begin:end].long()
        mask = rows.mask_N[response].long()
        rewards = torch.zeros(length - prompt)
        rewards[-1:] = float(rows.rewards_B[row])
        keys.append(f"{uid}_0_0")
        fields.append(
            {
                "uid": uid,
                "extra_fields": {"truncated": bool(rows.truncated_B[row])},
                "prompts": ids[:prompt],
                "responses": ids[prompt:],
                "input_ids": ids,
                "position_ids": torch.arange(length),
                "response_mask": mask,
                "loss_mask": mask,
                ROLLOUT: rows.rollout_logprobs_N[response],
                OLD: rows.rollout_logprobs_N[response],
                "teacher_logprobs": rows.teacher_logprobs_N[response],
                "rm_scores": rewards,
            }
        )
        if rows.top_ids_NK.shape[1]:
            fields[-1]["teacher_top_ids"] = rows.top_ids_NK[response]
            fields[-1]["teacher_top_logprobs"] = rows.top_logprobs_NK[response]
        tags.append(
            {
                "status": "success",
                "prompt_len": prompt,
                "response_len": length - prompt,
                "seq_len": length,
                "global_steps": int(rows.last_versions_B[row]) + 1,
                "min_global_steps": int(rows.first_versions_B[row]),
                "max_global_steps": int(rows.last_versions_B[row]),
                tag: True,
            }
        )
    tq.kv_batch_put(keys=keys, partition_id=partition_id, fields=list_of_dict_to_tensordict(fields), tags=tags)
    return KVBatchMeta(partition_id=partition_id, keys=keys, tags=tags)
