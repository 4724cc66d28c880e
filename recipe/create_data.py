"""Turn sentences and a prompt into rows: only the teacher sees the prompt.

    # on a CPU: Tinker's sentences and a short prompt; your own; problems of the hub
    python -m recipe.create_data
    python -m recipe.create_data source=file sentences=my.jsonl prompt=my_prompt.txt
    python -m recipe.create_data source=hub prompt=math student_prompt=math data_source=math
    python -m recipe.create_data --from sharegpt chats.json out_dir=outputs/chats
    # on a GPU: the prompted teacher's labels too, to train on
    python -m recipe.create_data prompt=tinker teacher=Qwen/Qwen3-4B-Instruct-2507

Writes train.parquet, heldout.parquet, edge.parquet and manifest.json; with a teacher also
conversations.jsonl (Tinker's format), conversations.parquet (verl's), labels_manifest.json, and
answers.jsonl, from which an interrupted run goes on. Other settings need another folder.
Chats (`--from openai|sharegpt|verl FILE`): the teacher sees the system message (docs/data.md).
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
from omegaconf import DictConfig

from verl_ext.checks.values import check_vllm
from verl_ext.data.chats import with_source
from verl_ext.data.create import RowsConfig, create_rows, package_version
from verl_ext.run.files import check_writable
from verl_ext.run.hydra import register_verb
from verl_ext.run.models import check_model
from verl_ext.run.settings import settings_of
from verl_ext.run.verb import Verb, run_verb
from verl_ext.run.visible import print
from verl_ext.sampling.teacher_labels import LabelConfig, LabelRun, create_labels
from verl_ext.sampling.types import EngineConfig, SamplingConfig, SamplingError

from . import PROMPTS


@dataclass(frozen=True)
class CreateDataConfig(RowsConfig):
    """Settings of `python -m recipe.create_data`."""

    teacher: str = ""
    """Folder or hub name of the model that labels the rows with the prompt in view; empty: no labels."""
    labels: LabelConfig = field(default_factory=LabelConfig)
    """How its answers become labels (verl_ext/sampling/teacher_labels.py)."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How its answers are drawn (verl_ext/sampling/types.py)."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """How vLLM runs it (verl_ext/sampling/types.py)."""


def label(config: CreateDataConfig) -> str:
    """Label the rows that `create` wrote; returns the line to print."""
    out_dir = Path(config.out_dir)
    if not config.labels.urls:
        check_model("teacher", config.teacher)
        check_vllm("engine.tp", config.engine.tp)
    rows = [row for name in config.labels.splits for row in pq.read_table(out_dir / f"{name}.parquet").to_pylist()]
    prompt = json.loads((out_dir / "manifest.json").read_text(encoding="utf-8"))["settings"]["prompt_sha256"]
    return create_labels(
        LabelRun(
            teacher=config.teacher,
            labels=config.labels,
            sampling=config.sampling,
            engine=config.engine,
            rows=sorted(rows, key=lambda row: row["extra_info"]["index"]),
            out_dir=out_dir,
            facts={"version": package_version(), "prompt": config.prompt, "prompt_sha256": prompt},
            overwrite=config.overwrite,
        )
    )


register_verb("create_data", CreateDataConfig)
VERB = Verb(
    "create_data",
    doc=str(__doc__),
    settings={"": CreateDataConfig},
    more="More: data/README.md (columns), docs/configuration.md, docs/sft.md (labels).",
    errors=(ValueError, FileNotFoundError, SamplingError),
    interrupted="interrupted; the same command goes on from the answers that it has",
)


def create_data(config: DictConfig) -> None:
    settings = settings_of(config, CreateDataConfig)
    check_writable("out_dir", settings.out_dir, folder=True)
    print(create_rows(settings, PROMPTS), flush=True)
    if settings.teacher:
        print(label(settings))


def main() -> None:
    run_verb(VERB, create_data, with_source(sys.argv[1:]))


if __name__ == "__main__":
    main()
