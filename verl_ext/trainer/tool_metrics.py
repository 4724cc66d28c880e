"""What samples of several turns and with tools did, in numbers: `turns/*` and `tools/*`.

Shapes: `B` samples, `T` response tokens.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from verl_ext.method.reverse_kl import teacher_kl
from verl_ext.trainer.loops import ARGUMENTS, DONE, FAILED, UNKNOWN

Note = Mapping[str, Any]
SHOWN_TURNS = 4
"""Turns whose reverse KL is told apart."""
WANTED = "tool_calls"
"""In a row's `extra_info`: how many calls its answer takes."""


def answer_lengths(notes: Sequence[Note]) -> dict[str, float]:
    """`response_length/*`, tokens: those that the student sampled. verl counts what tools wrote as well."""
    lengths = [note["sampled_tokens"] for note in notes]
    return {
        "response_length/mean": sum(lengths) / len(lengths),
        "response_length/max": float(max(lengths)),
        "response_length/min": float(min(lengths)),
    }


def turn_metrics(notes: Sequence[Note]) -> dict[str, float]:
    """Of the samples of loops that take turns; nothing where there are none."""
    taking = [note for note in notes if "turn_tokens" in note]
    if not taking:
        return {}
    turns = [len(note["turn_tokens"]) for note in taking]
    sampled, read = (sum(note[key] for note in taking) for key in ("sampled_tokens", "response_tokens"))
    return {
        "turns/mean": sum(turns) / len(turns),
        "turns/max": float(max(turns)),
        "turns/tokens_mean": sum(sum(note["turn_tokens"]) for note in taking) / sum(turns),
        "turns/read_share": 1 - sampled / max(read, 1),
        "teacher/early_turns": float(sum(note["early_turns"] for note in taking)),
    } | tool_metrics([note for note in taking if "tool_use" in note])


def tool_metrics(notes: Sequence[Note]) -> dict[str, float]:
    """Of the samples of the tool agent; nothing where there are none."""
    if not notes:
        return {}
    uses = [note["tool_use"] for note in notes]
    calls = [call for use in uses for call in use["calls"]]
    counts = [len(use["calls"]) for use in uses]
    outcomes = [outcome for _, outcome, _, _ in calls]
    found = {
        "calls_mean": sum(counts) / len(counts),
        "called_share": _share(count > 0 for count in counts),
        "called_again_share": _share(count > 1 for count in counts),
        "unknown_share": _share(outcome == UNKNOWN for outcome in outcomes),
        "bad_arguments_share": _share(outcome == ARGUMENTS for outcome in outcomes),
        "cut_share": _share(cut for _, _, _, cut in calls),
        "unread": float(sum(use["unread"] for use in uses)),
        "left_out": float(sum(use["left_out"] for use in uses)),
        "unfinished_share": _share(use["unfinished"] for use in uses),
    }
    wanted = [(len(note["tool_use"]["calls"]), note[WANTED]) for note in notes if note.get(WANTED) is not None]
    if wanted:
        found["wanted_mean"] = sum(count for _, count in wanted) / len(wanted)
        found["over_called_share"] = _share(made > count for made, count in wanted)
    return {f"tools/{name}": value for name, value in (found | _of_each_tool(calls, len(notes))).items()}


def _of_each_tool(calls: Sequence[Any], samples: int) -> dict[str, float]:
    by_name: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for name, outcome, seconds, _ in calls:
        if outcome in (DONE, FAILED):  # any other is no tool's own
            by_name[name].append((outcome, seconds))
    found = {}
    for name, made in sorted(by_name.items()):
        found[f"{name}/calls_mean"] = len(made) / samples
        found[f"{name}/failed_share"] = _share(outcome == FAILED for outcome, _ in made)
        found[f"{name}/seconds"] = sum(seconds for _, seconds in made) / len(made)
    return found


def _share(flags: Any) -> float:
    values = list(flags)
    return sum(map(bool, values)) / len(values) if values else 0.0


def turn_of_BT(mask_BT: torch.Tensor) -> torch.Tensor:
    """The turn, from 1, of each token that the student sampled, 0 elsewhere, (B, T). Others' tokens part two turns."""
    mask_BT = mask_BT.bool()
    before_BT = torch.nn.functional.pad(mask_BT, (1, 0))[:, :-1]
    return torch.where(mask_BT, (mask_BT & ~before_BT).cumsum(-1), 0)


def kl_by_turn(
    student_logprobs_BT: torch.Tensor, teacher_logprobs_BT: torch.Tensor, mask_BT: torch.Tensor
) -> dict[str, float]:
    """`turns/teacher_kl_<k>`: reverse KL a token of the k-th turn, nats; nothing where no sample has several."""
    turn_BT = turn_of_BT(mask_BT)
    turns = int(turn_BT.max()) if turn_BT.numel() else 0
    if turns < 2:
        return {}
    return {
        f"turns/teacher_kl_{turn}": teacher_kl(student_logprobs_BT, teacher_logprobs_BT, turn_BT == turn)
        for turn in range(1, min(turns, SHOWN_TURNS) + 1)
    }
