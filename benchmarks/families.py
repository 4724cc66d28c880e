"""Which model families train: a tiny random model of each, through every engine, two steps each of full and LoRA.

    python -m benchmarks.families --families qwen3,llama3 --json families.json
    python -m benchmarks.families --markdown docs/models.md      # the table between its two marks

Each family is the student and, with a prompt, its own teacher, in float32: the doctor compares vLLM's, SGLang's and
transformers' log-probs; two steps of training compare the sampler's with the trainer's; the exported student answers in
`recipe.evaluate`. About 4 minutes a family on two quiet cores; what is done in `--out` is not run again. A stage that
fails keeps its last line, and the others of the family that need it are not run.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.arms.family_models import FAMILIES, write_family
from benchmarks.arms.runs import DEMO, RUN_TIMEOUT_S, report
from verl_ext.checks.config import FP32
from verl_ext.run.files import write_json

STEPS = 2
ANSWER = 8
"""Tokens of an answer."""
MARKS = ("<!-- benchmarks/families.py -->", "<!-- end -->")
STAGES = ("doctor", "full", "lora", "evaluate")
LORA = ("update=lora", "actor_rollout_ref.model.lora_rank=4")
NEEDS = {"evaluate": "full"}


def command(stage: str, folder: Path) -> list[str]:
    """What a user would type for one stage of a family."""
    model, data = folder / "model", DEMO / "data"
    run = [
        *("platform=cpu", "task=demo", f"student.path={model}", f"data.train_files={data}/train.parquet"),
        *(f"data.val_files={data}/heldout.parquet", "data.train_batch_size=8", f"data.max_response_length={ANSWER}"),
        *("data.max_prompt_length=256", "actor_rollout_ref.rollout.max_model_len=320", "teacher.context_length=640"),
    ]
    if stage == "doctor":
        own = ("doctor.rows=8", f"doctor.response_tokens={ANSWER}", f"doctor.out={folder}/doctor.json")
        return [sys.executable, "-m", "recipe.doctor", *run, *own]
    if stage == "evaluate":
        words = (f"data={data}/heldout.parquet", f"student={folder}/full/student", f"out={folder}/eval.json")
        return [sys.executable, "-m", "recipe.evaluate", *words, f"max_tokens={ANSWER}", "dtype=float32"]
    steps = (f"trainer.total_training_steps={STEPS}", f"trainer.save_freq={STEPS}", "trainer.resume_mode=disable")
    words = (*run, *steps, f"run_dir={folder}/{stage}", *(LORA if stage == "lora" else ()))
    return [sys.executable, "-m", "recipe.on_policy_distillation", *words]


def run_stage(stage: str, folder: Path) -> dict[str, Any]:
    """What a stage found; its last line where it failed."""
    print(f"{folder.name}: {stage} (log: {folder}/{stage}.log)", flush=True)
    (folder / stage / "metrics.jsonl").unlink(missing_ok=True)  # of a run that was cut off
    with (folder / f"{stage}.log").open("w") as log:
        done = subprocess.run(command(stage, folder), stdout=log, stderr=log, timeout=RUN_TIMEOUT_S, check=False)
    found: dict[str, Any] = {"status": done.returncode}
    if stage == "doctor" and (folder / "doctor.json").is_file():
        findings = {each["name"]: each for each in json.loads((folder / "doctor.json").read_text())["findings"]}
        found |= {name: findings[name] for name in ("log-probs", "teacher = student") if name in findings}
        failed = [f"{each['name']}: {each['seen']}" for each in findings.values() if each["verdict"] == "fail"]
        found["says"] = "; ".join(failed)
    elif done.returncode:
        lines = (folder / f"{stage}.log").read_text(errors="replace").strip().splitlines()
        found["says"] = lines[-1].partition("; traceback:")[0] if lines else "no word"
    if stage in ("full", "lora") and not done.returncode:
        rows = [json.loads(line) for line in (folder / stage / "metrics.jsonl").read_text().splitlines()]
        found |= {"gap": rows[0]["actor/rollout_gap_max"], "scored": sum(row["teacher/scored"] for row in rows)}
    return found


def run_family(name: str, out: Path) -> dict[str, Any]:
    """Every stage of a family; what `out` has is taken from there."""
    folder = out / name
    file = folder / "found.json"
    if file.is_file():
        return json.loads(file.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    write_family(name, folder / "model", DEMO / "models/base")
    found: dict[str, Any] = {"family": name}
    for stage in STAGES:
        if (needed := NEEDS.get(stage)) is None or found[needed]["status"] == 0:
            found[stage] = run_stage(stage, folder)
    write_json(file, found)
    return found


def known_of(name: str, out: Path) -> dict[str, Any]:
    """What an earlier run of the benchmark found of a family, if any did."""
    file = out / name / "found.json"
    return json.loads(file.read_text()) if file.is_file() else {"family": name}


def row_of(found: dict[str, Any]) -> list[str]:
    """A family's line of the table; of one that was not run, that its configuration passes the cheap checks."""
    family = FAMILIES[found["family"]]
    cells = [found["family"], family.model_type, family.like]
    if "doctor" not in found:
        return [*cells, *["composes"] * (len(COLUMNS) - len(cells))]
    doctor = found["doctor"].get("log-probs")
    cells.append(
        f"{doctor['numbers']['straight']['max']:.0e}" if doctor and "straight" in doctor["numbers"] else "not seen"
    )
    for stage in ("full", "lora"):
        cells.append(f"{found[stage]['gap']:.0e}" if found[stage]["status"] == 0 else "fails")
    cells.append("yes" if found.get("evaluate", {}).get("status") == 0 else "no")
    return cells


COLUMNS = (
    "family",
    "`model_type`",
    "as in",
    "SGLang - transformers",
    "vLLM - trainer, full",
    "LoRA",
    "exported, served",
)


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table, and below it what a stage that failed said."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    lines += [f"| {' | '.join(row_of(found))} |" for found in rows]
    said = [
        f"- {found['family']}, {stage}: {found[stage]['says']}"
        for found in rows
        for stage in STAGES
        if found.get(stage, {}).get("says")
    ]
    return "\n".join([*lines, *(["", *said] if said else [])])


def put_into(file: Path, table: str) -> None:
    """The table between the marks of a page."""
    before, _, rest = file.read_text().partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    file.write_text(f"{before}{MARKS[0]}\n{table}\n{MARKS[1]}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description="which model families train, proved on tiny random models")
    parser.add_argument("--families", default=",".join(FAMILIES), help=f"of {', '.join(FAMILIES)}")
    parser.add_argument("--out", type=Path, help="folder of the runs; default: a new temporary one")
    parser.add_argument("--json", type=Path, help="write the table and the bars here")
    parser.add_argument("--markdown", type=Path, help="page into which the table goes, between its two marks")
    options = parser.parse_args()
    names = options.families.split(",")
    if unknown := [name for name in names if name not in FAMILIES]:
        parser.error(f"--families={options.families}: no family {', '.join(unknown)}; there are {', '.join(FAMILIES)}")
    out = options.out or Path(tempfile.mkdtemp(prefix="benchmark-"))
    rows = [run_family(name, out) for name in names]
    table = Table(*(column.strip("`") for column in COLUMNS))
    for found in rows:
        table.add_row(*row_of(found))
    Console(width=160).print(table)
    if options.markdown:
        put_into(options.markdown, markdown([known_of(name, out) for name in FAMILIES]))
    bars = [
        (f"{found['family']}_{stage}_gap_nats", found[stage].get("gap", float("inf")), FP32.max)
        for found in rows
        for stage in ("full", "lora")
    ]
    report(rows, bars, options.json)


if __name__ == "__main__":
    main()
