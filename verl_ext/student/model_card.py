"""The model card of a student: what made it, how good it is, what it cost so far, and how to serve it.

`README.md` in the folders `student` and `adapter` of a run, written after each checkpoint, at the end, and by
`recipe.evaluate`; everything in it is read from the run's folder.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow.parquet as pq
from omegaconf import DictConfig, ListConfig, OmegaConf

from verl_ext.run.checkpoints import latest_step
from verl_ext.run.files import write_atomically, write_json
from verl_ext.run.metrics import read_metrics
from verl_ext.run.models import is_hub_name
from verl_ext.run.resume import changes_of
from verl_ext.run.visible import visible
from verl_ext.student.markdown import indented, plain, table
from verl_ext.student.weights import warning_of

Row = Mapping[str, float]

ON_POLICY = {
    "base": "student.path",
    "teacher": "teacher.model_path",
    "teacher's dtype": "teacher.dtype",
    "teacher's quantization": "teacher.quantization",
    "loss": "method.loss",
    "coefficient": "method.coef",
    "discount": "method.discount",
    "baseline": "method.baseline",
    "policy loss": "method.policy_loss.kind",
    "share of the teacher's own answers": "method.off_policy_share",
    "those answers": "method.off_policy_data",
    "teacher is the student after steps": "teacher.refresh_every",
    "share of that teacher which stays": "teacher.ema",
    "control (breaks the run on purpose)": "method.control",
    "rows": "data.train_files",
    "prompts a step": "data.train_batch_size",
    "samples a prompt": "actor_rollout_ref.rollout.n",
    "longest response, tokens": "data.max_response_length",
    "LoRA rank": "actor_rollout_ref.model.lora_rank",
    "LoRA alpha": "actor_rollout_ref.model.lora_alpha",
    "LoRA's base in training": "actor_rollout_ref.model.lora.base",
    "learning rate": "actor_rollout_ref.actor.optim.lr",
    "schedule": "actor_rollout_ref.actor.optim.lr_scheduler_type",
    "seed": "data.seed",
}
"""What a card says of an on-policy run's config.yaml, by name."""
SFT = {
    "base": "student.path",
    "rows": "data.train_files",
    "rows a step": "data.train_batch_size",
    "epochs": "trainer.total_epochs",
    "LoRA rank": "model.lora_rank",
    "LoRA alpha": "model.lora_alpha",
    "learning rate": "optim.lr",
    "schedule": "optim.lr_scheduler_type",
    "weight decay": "optim.weight_decay",
    "seed": "sft.seed",
}
"""The same of an SFT run."""
MERGE = """## Merge it

PEFT merges an adapter of the output head into the matrix that it shares with the input embedding, where the base ties
the two, and so changes both. Give the head its own first (the run's folder `student` is merged so):

    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained({base})
    if model.config.tie_word_embeddings:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        model.config.tie_word_embeddings = False
    merged = PeftModel.from_pretrained(model, ".").merge_and_unload()"""
UNREMARKABLE = (None, 0, 0.0, "none", "")
KINDS = {"student": "whole model", "adapter": "PEFT adapter", "gguf": "GGUF of the whole model"}
"""Folders with a card -> what they hold."""
EVALUATED = ("base", "base_prompted", "teacher", "student")
PACKAGES = ("verl-opd", "verl", "torch", "transformers")


def write_cards(run_dir: Path, out: Path | None = None, step: int | None = None, base: str = "") -> None:
    """Write `README.md` beside the weights of each of KINDS that there is.

    `out`: their folder, None for the run's own; `step`: of their checkpoint, None for the newest; `base`: the model
    that was trained, where it is not at the run's `student.path` any more.
    """
    config, out = OmegaConf.load(run_dir / "config.yaml"), out or run_dir
    assert isinstance(config, DictConfig)
    config.student.path = base or config.student.path
    rows, file = rows_of(run_dir, config, step), run_dir / "eval.json"
    evaluation = json.loads(file.read_text()) if file.is_file() else {}
    if evaluation.get("step") != last_step(rows):
        evaluation = {}  # of weights that have been trained since
    for kind in KINDS:
        if (out / kind).is_dir():
            changes = changes_of(run_dir, (ON_POLICY if is_on_policy(config) else SFT).values())
            warning = warning_of(out / kind)
            text = card(config, rows, evaluation, kind=kind, changes=changes, warning=warning)
            write_atomically(out / kind / "README.md", text)


def rows_of(run_dir: Path, config: DictConfig, step: int | None = None) -> list[dict[str, float]]:
    """Of metrics.jsonl, up to the checkpoint of a step, the newest by default: what a run did after it is in no
    student. Empty without a file."""
    metrics, saved = run_dir / "metrics.jsonl", step or latest_step(Path(config.trainer.default_local_dir))
    rows = read_metrics(metrics) if metrics.is_file() else []
    return [row for row in rows if saved is None or row["step"] <= saved]


def last_step(rows: Sequence[Row]) -> float | None:
    """Of the recorded ones; None where there are none."""
    return rows[-1]["step"] if rows else None


def keep_evaluation(student: Path, report: Mapping[str, Any]) -> bool:
    """Keep a report of `recipe.evaluate` on RUN/student as `RUN/eval.json` and show it on the cards; else nothing."""
    run_dir = student.absolute().parent
    if student.name != "student" or not (run_dir / "config.yaml").is_file():
        return False
    config = OmegaConf.load(run_dir / "config.yaml")
    assert isinstance(config, DictConfig)
    write_json(run_dir / "eval.json", {**report, "step": last_step(rows_of(run_dir, config))})
    write_cards(run_dir)
    return True


def card(
    config: DictConfig,
    rows: Sequence[Row],
    evaluation: Mapping[str, Any],
    *,
    kind: str,
    changes: Mapping[str, str] = MappingProxyType({}),
    warning: str = "",
) -> str:
    """The card's text. `kind`: of KINDS; `evaluation`: an eval.json of these weights, or empty; `changes`: by setting,
    from and to; `warning`: what comes before all else."""
    from huggingface_hub import ModelCardData

    base = str(config.student.path)
    head = ModelCardData(
        base_model=None if is_folder(base) else base,  # the hub refuses a card that names a folder
        library_name={"student": "transformers", "adapter": "peft", "gguf": "gguf"}[kind],
        pipeline_tag="text-generation",
        tags=["distillation", "on-policy-distillation" if is_on_policy(config) else "sft"],
    )
    adapter = kind == "adapter"
    parts = [
        f"---\n{head.to_yaml()}\n---",
        f"# {plain(config.trainer.experiment_name)}: {KINDS[kind]}\n\nMade with verl-opd; the licence is the base's.",
        *([warning] if warning else []),
        "## Serve it\n\nFrom this folder:\n\n" + indented("\n".join(serve_lines(base, rank(config), kind))),
        *([MERGE.format(base=json.dumps(base))] if adapter and merges_head(config) else []),
        table("Settings", settings(config)),
    ]
    if changes:
        parts.append(table("Changed at a resume", changes))
    if prompt := distilled_prompt(config):
        parts.append(f"## The distilled prompt\n\nAs the teacher saw it:\n\n{indented(prompt)}")
    if rows:
        parts += [table("Training", training(rows)), table("Cost so far", cost(config, rows))]
    if evaluation:
        parts.append(table("Evaluation", accuracies(evaluation)))
    parts.append("Versions: " + ", ".join(f"{name} {version(name)}" for name in PACKAGES) + ".")
    return "\n\n".join(parts) + "\n"


def is_folder(base: str) -> bool:
    """A base that nobody has elsewhere, rather than one of the hub."""
    return Path(base).is_dir() or not is_hub_name(base)


def is_on_policy(config: DictConfig) -> bool:
    """Else SFT, which has no `method`."""
    return "method" in config


def rank(config: DictConfig) -> int:
    """LoRA's rank; 0 where every weight was trained."""
    model = config.actor_rollout_ref.model if is_on_policy(config) else config.model
    return int(model.lora_rank)


def serve_lines(base: str, lora_rank: int, kind: str, folder: str = ".") -> list[str]:
    """Commands that serve what is in `folder`, one of KINDS."""
    base, folder = shlex.quote(visible(base).replace("\n", "\\n")), shlex.quote(folder)
    if kind == "gguf":
        return [f"llama-server --jinja -m {folder}/student-*.gguf"]
    if kind == "student":
        return [f"vllm serve {folder}", f"python -m sglang.launch_server --model-path {folder}"]
    return [
        f"vllm serve {base} --enable-lora --max-lora-rank {lora_rank} --lora-modules student={folder}",
        f"python -m sglang.launch_server --model-path {base} --lora-paths student={folder}",
    ]


def settings(config: DictConfig) -> dict[str, str]:
    """By name, those that say something."""
    found = {}
    for name, key in (ON_POLICY if is_on_policy(config) else SFT).items():
        value = OmegaConf.select(config, key)
        if name == "LoRA alpha" and not rank(config):
            continue  # the base's default: there are no adapters
        if value not in UNREMARKABLE or name == "seed":
            found[name] = ", ".join(map(str, value)) if isinstance(value, ListConfig) else str(value)
    return found


def training(rows: Sequence[Row]) -> dict[str, str]:
    """First and last value of what shows that it learned."""
    names = {
        "teacher_kl": "reverse KL from the teacher, nats a token",
        "critic/rewards/mean": "share of samples that equal the label",
        "train/loss": "loss, nats a token",
    }
    first, last = rows[0], rows[-1]
    found = {text: f"{first[key]:.4g} → {last[key]:.4g}" for key, text in names.items() if key in first and key in last}
    return {"steps": f"{last['step']:.0f}"} | found


def cost(config: DictConfig, rows: Sequence[Row]) -> dict[str, str]:
    """Sums over the recorded steps; start-up, evaluation and what was done before `create_data` are not in them."""

    def total(key: str) -> float:
        return sum(row.get(key, 0.0) for row in rows)

    seconds = total("timing_s/step")
    found = {"seconds in steps": f"{seconds:,.0f}"}
    if is_on_policy(config):
        samples = config.data.train_batch_size * config.actor_rollout_ref.rollout.n
        found["samples"] = f"{samples * len(rows):,}"
        found["tokens that the student sampled"] = f"{samples * total('response_length/mean'):,.0f}"
        found["tokens that the trainer read"] = f"{total('perf/total_num_tokens'):,.0f}"
        found["tokens that the teacher read"] = f"{total('teacher/tokens'):,.0f}"
        if config.trainer.device == "cuda":
            devices = config.trainer.nnodes * config.trainer.n_gpus_per_node
            found["GPU-hours of trainer and vLLM"] = f"{devices * seconds / 3600:.2f}"
            if own := teachers_devices(config):
                found["GPU-hours of the teacher"] = f"{own * seconds / 3600:.2f}"
    else:
        found["tokens trained on"] = f"{total('train/tokens'):,.0f}"
    return found


def teachers_devices(config: DictConfig) -> int:
    """GPUs that managed teachers had to themselves; those of external servers are not known here."""
    teachers = [OmegaConf.merge(config.teacher, departures) for departures in config.teachers.values()]
    return sum(
        teacher.tp * teacher.dp
        for teacher in teachers or [config.teacher]
        if teacher.mode == "managed" and teacher.store_mode != "replay" and not teacher.share_device
    )


def accuracies(evaluation: Mapping[str, Any]) -> dict[str, str]:
    """Held-out accuracy by arm, with its 95 % interval."""
    found = {}
    for arm in EVALUATED:
        if arm in evaluation:
            low, high = evaluation[arm]["accuracy_interval_95"]
            prompt = "with" if evaluation[arm]["sees_prompt"] else "without"
            text = f"{evaluation[arm]['accuracy']:.3f} ({low:.3f}-{high:.3f}) of {evaluation[arm]['rows']} rows"
            found[f"{arm}, {prompt} the prompt"] = text
    return found


def merges_head(config: DictConfig) -> bool:
    """The adapter changes the output head, whose matrix many bases share with the input embedding."""
    model = config.actor_rollout_ref.model if is_on_policy(config) else config.model
    return "lm_head" in model.target_modules


def distilled_prompt(config: DictConfig) -> str | None:
    """The teacher's messages of the first row, {text} where they hold what the student is asked.

    None where both see the same, or the rows are not there any more. SFT's conversations do not have the prompt; the
    rows that `recipe.create_data` made them from are beside them.
    """
    files = config.data.train_files
    path = Path(str(files if isinstance(files, str) else files[0])).expanduser()
    path = path if is_on_policy(config) else path.with_name("train.parquet")
    if not path.is_file():
        return None
    first = next(pq.ParquetFile(path).iter_batches(batch_size=1, columns=["prompt", "teacher_messages"])).to_pylist()[0]
    if first["prompt"] == first["teacher_messages"]:
        return None
    asked = first["prompt"][-1]["content"]
    return "\n".join(
        f"{message['role']}: {message['content'].replace(asked, '{text}')}" for message in first["teacher_messages"]
    )
