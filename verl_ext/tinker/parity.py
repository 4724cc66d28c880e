"""Tinker's notes against ours, value by value. Pure: it reads two dictionaries and types in no value of its own."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

MATCH, DIFFERS, UNKNOWABLE = "match", "differs", "unknowable"
RELATIVE_TOLERANCE = 1e-12
"""For learning rates, which both sides compute in double precision."""


@dataclass(frozen=True)
class Comparison:
    """One value of both sides."""

    area: str
    name: str
    tinker: str
    ours: str
    status: str
    """`match`, `differs`, or `unknowable` where Tinker's service decides and does not say."""
    reason: str
    """Why it differs or cannot be known; "" for a match, and for a difference that nobody has explained."""

    @property
    def ok(self) -> bool:
        return self.status != DIFFERS or bool(self.reason)


def text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(text(item) for item in value)
    return str(value)


def same(area: str, name: str, tinker: Any, ours: Any) -> Comparison:
    """Equal, or an unexplained difference."""
    return Comparison(area, name, text(tinker), text(ours), MATCH if tinker == ours else DIFFERS, "")


def explained(area: str, name: str, tinker: Any, ours: Any, *, holds: bool, reason: str) -> Comparison:
    """A difference that we know of. `reason` explains it as long as `holds`, the fact it rests on, is true."""
    if tinker == ours:
        return same(area, name, tinker, ours)
    return Comparison(area, name, text(tinker), text(ours), DIFFERS, reason if holds else "")


def unknowable(area: str, name: str, ours: Any, reason: str) -> Comparison:
    return Comparison(area, name, "not said", text(ours), UNKNOWABLE, reason)


def only(values: Sequence[Any]) -> Any:
    """The one value that all steps share, else the list of them."""
    found = [json.loads(value) for value in dict.fromkeys(json.dumps(value) for value in values)]
    return found[0] if len(found) == 1 else found


def compare(tinker: dict[str, Any], ours: dict[str, Any]) -> list[Comparison]:
    """Every comparison, in the order of the report. `tinker` and `ours` are what `oracle` and `ours` noted."""
    sections: tuple[Callable[..., list[Comparison]], ...] = (labels, batches, optimizer, adapters, checkpoints)
    return [comparison for section in sections for comparison in section(tinker, ours)]


def labels(tinker: dict[str, Any], ours: dict[str, Any]) -> list[Comparison]:
    area, theirs, mine = "labels", tinker["create_data"], ours["create_data"]
    asked, asking = theirs["sampling"], mine["sampling"]
    keys = ("temperature", "max_tokens", "top_p", "top_k")
    return [
        *(same(area, key, asked[key], asking[key]) for key in keys),
        same(area, "stop (token ids)", asked["stop"], asking["stop"]),
        explained(
            area,
            "seed",
            asked["seed"],
            asking["seed"],
            holds=asked["seed"] is None,
            reason="Tinker sets none; ours lets a resumed run draw what the whole one would have drawn",
        ),
        same_hash(area, f"prompts, {theirs['prompts']} in token ids", theirs["prompts_sha256"], mine["prompts_sha256"]),
        same_hash(area, f"rows written, {theirs['lines']} lines", theirs["lines_sha256"], mine["lines_sha256"]),
    ]


def batches(tinker: dict[str, Any], ours: dict[str, Any]) -> list[Comparison]:
    area, theirs, mine = "batches", tinker["train"], ours["train"]
    pairs = list(zip(theirs["first_batch"], mine["first_batch"], strict=False))
    ids = sum(a["ids"] == b["ids"] for a, b in pairs)
    weights = sum(a["weights"] == b["weights"] for a, b in pairs)
    equal = sum(a == b for a, b in zip(theirs["batches"], mine["batches"], strict=False))
    return [
        same(area, "renderer", tinker["renderer_of_model"], mine["renderer"]),
        same(area, "rows", theirs["rows"], mine["rows"]),
        same(area, "batch size", only(theirs["batch_sizes"]), mine["batch_size"]),
        same(area, "epochs", theirs["cli"]["num_epochs"], mine["epochs"]),
        same(area, "steps (the last batch of an epoch is dropped)", len(theirs["batches"]), len(mine["batches"])),
        same(area, "max_length", theirs["cli"]["max_length"], mine["max_length"]),
        same(area, "first batch, rows with these token ids", len(theirs["first_batch"]), ids),
        same(area, "first batch, rows with these loss weights", len(theirs["first_batch"]), weights),
        same(area, "batches with these rows in this order", len(theirs["batches"]), equal),
    ]


def optimizer(tinker: dict[str, Any], ours: dict[str, Any]) -> list[Comparison]:
    area, steps, mine = "optimizer", tinker["train"]["adam"], ours["train"]
    rates, our_rates = [step["learning_rate"] for step in steps], mine["learning_rates"]
    theirs = {key: only([step[key] for step in steps]) for key in ("beta1", "beta2", "eps", "weight_decay")}
    clip = only([step["grad_clip_norm"] for step in steps])
    close = len(rates) == len(our_rates) and all(
        math.isclose(a, b, rel_tol=RELATIVE_TOLERANCE) for a, b in zip(rates, our_rates, strict=True)
    )
    shown = [[all_rates[0], all_rates[1], all_rates[-1]] for all_rates in (rates, our_rates)]
    return [
        Comparison(
            area,
            f"learning rate, {len(rates)} steps (0, 1, last)",
            text(shown[0]),
            text(shown[1]),
            MATCH if close else DIFFERS,
            "",
        ),
        same(area, "betas", [theirs["beta1"], theirs["beta2"]], mine["betas"]),
        epsilon(area, theirs["eps"], mine),
        same(area, "weight decay", theirs["weight_decay"], mine["weight_decay"]),
        explained(
            area,
            "gradient clipping",
            clip,
            mine["clip_grad"],
            holds=clip == 0 and math.isinf(mine["clip_grad"]),
            reason="both mean none; verl's 0.0 would zero every gradient",
        ),
        unknowable(
            area,
            "loss of a batch at log-probs of -1",
            mine["loss_at_one_nat"],
            f"the service computes {', '.join(tinker['train']['loss_functions'])}; a comment in the client says "
            f"{tinker['loss_as_the_client_says'] or 'nothing'}, which is our mean times the batch",
        ),
    ]


def epsilon(area: str, theirs: float, mine: dict[str, Any]) -> Comparison:
    """Adam's eps is measured against the gradient: on a loss divided by n, n times smaller is the same step."""
    divided_by = mine["batch_size"] / mine["loss_at_one_nat"]
    equal = math.isclose(mine["eps"] * divided_by, theirs, rel_tol=RELATIVE_TOLERANCE)
    if equal and divided_by == 1:
        return same(area, "eps", theirs, mine["eps"])
    reason = (
        f"theirs / {text(divided_by)}: our loss is the mean over the batch, and Adam then takes the step of the sum"
    )
    return Comparison(area, "eps", text(theirs), text(mine["eps"]), DIFFERS, reason if equal else "")


def adapters(tinker: dict[str, Any], ours: dict[str, Any]) -> list[Comparison]:
    area, theirs, mine = "LoRA", tinker["train"]["adapter"], ours["train"]
    elsewhere = tinker["lora_alpha_elsewhere"]
    blocks = ("train_attn", "train_mlp", "train_unembed")
    return [
        same(area, "rank", theirs["rank"], mine["lora_rank"]),
        *(same(area, block, theirs[block], mine["adapted"][block]) for block in blocks),
        same(area, f"parameters on {tinker['lora_model']}", tinker["lora_parameters"], mine["lora_parameters"]),
        unknowable(
            area, "alpha", mine["lora_alpha"], f"not in the API; the cookbook's LR helper has the default {elsewhere}"
        ),
        unknowable(area, "first weights", f"PEFT's default, seed {mine['lora_seed']}", "drawn by the service"),
        unknowable(area, "dtypes", list(mine["dtypes"].values()), "chosen by the service"),
    ]


def checkpoints(tinker: dict[str, Any], ours: dict[str, Any]) -> list[Comparison]:
    area, theirs, mine = "run", tinker["train"], ours["train"]
    inside = [save["updates"] for save in theirs["saves"]]
    return [
        same(area, "save every, steps", theirs["cli"]["save_every"], mine["save_every"]),
        explained(
            area,
            "updates in each checkpoint",
            inside,
            mine["saves"],
            holds=len(inside) == len(mine["saves"]) and inside[-1] == mine["saves"][-1],
            reason="Tinker counts from 0 and sends a step before it has saved the last; ours holds what its name says",
        ),
        explained(
            area,
            "default model",
            theirs["cli"]["model_name"],
            None,
            holds=True,
            reason="ours has none: student.path names it",
        ),
    ]


def same_hash(area: str, name: str, tinker: str, ours: str) -> Comparison:
    return same(area, name, f"sha256 {tinker[:8]}", f"sha256 {ours[:8]}")


def markdown(comparisons: Sequence[Comparison], versions: dict[str, str]) -> str:
    """The report for people."""
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    counts = {status: sum(c.status == status for c in comparisons) for status in (MATCH, DIFFERS, UNKNOWABLE)}
    lines = [
        f"Against {named}, as installed: " + ", ".join(f"{n} {status}" for status, n in counts.items()) + ".",
        "",
        "| | value | Tinker | ours | | why |",
        "|---|---|---|---|---|---|",
        *(
            f"| {c.area} | {c.name} | {c.tinker} | {c.ours} | {c.status} | {c.reason or ('' if c.ok else '?')} |"
            for c in comparisons
        ),
    ]
    return "\n".join(lines) + "\n"


def report(comparisons: Sequence[Comparison], versions: dict[str, str]) -> dict[str, Any]:
    """The report for programs."""
    return {
        "versions": versions,
        "ok": all(c.ok for c in comparisons),
        "comparisons": [asdict(c) | {"ok": c.ok} for c in comparisons],
    }
