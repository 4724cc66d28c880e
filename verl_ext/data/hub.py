"""Problems and their answers, read with the `datasets` library: from the hub, or from files of the same form.

No code of a data set is run: `datasets` has refused to since its version 4.
"""

import contextlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_ext.data.privileged import context_of
from verl_ext.data.sentences import TRANSLATION, Sentence
from verl_ext.data.text_files import READERS, records, value_as_text
from verl_ext.run.models import asked_hub

FILES = tuple(READERS)


@dataclass(frozen=True)
class HubConfig:
    """Where the problems of `source=hub` are."""

    path: str = "agentica-org/DeepScaleR-Preview-Dataset"
    """`owner/name` on the hub, a local folder of data files, or one .jsonl, .json or .parquet file."""
    name: str = ""
    """Configuration of the data set; empty: its default one."""
    split: str = "train"
    """Split that is read. Our own train and held-out rows are both made from it."""
    revision: str = ""
    """Commit, tag or branch on the hub; empty: its main branch, which may change."""
    text: str = "problem"
    """Column of the problem, text."""
    answer: str = "answer"
    """Column of the final answer alone, text or a number: no solution, no \\boxed{} around it. Empty: the rows have no
    answer, none is rewarded and none evaluated."""
    max_chars: int = 0
    """Leave out longer problems, characters, >= 0; 0 keeps all. Training refuses a prompt over
    `data.max_prompt_length`."""
    max_rows: int = 0
    """Keep this many problems, drawn with `seed` from all that can be used; 0 keeps all, else >= 2."""

    def __post_init__(self) -> None:
        if self.max_chars < 0:
            raise ValueError(f"hub.max_chars={self.max_chars}: expected 0 (no limit) or more")
        if self.max_rows < 0 or self.max_rows == 1:
            raise ValueError(f"hub.max_rows={self.max_rows}: expected 0 (all), or at least 2")


@dataclass(frozen=True)
class Problems:
    """What was read, and how much of it was left out."""

    sentences: list[Sentence]
    """In the source's order, no two with the same text, white space aside."""
    counts: dict[str, int]
    """Rows: `read`; left out `without_problem`, `without_answer`, as `over_max_chars`, `repeated` (a text once more),
    `contradictory` (a text that has several answers: all its rows) or `over_max_rows`; `kept`, which is the rest."""


def load_problems(config: HubConfig, seed: int, context: str = "") -> Problems:
    """Problems that have one answer, each once. `context`: the column of what the teacher alone is shown, or "".

    Raises:
        ValueError: naming the key, where there is nothing to read, or not in the named columns.
    """
    counts = dict.fromkeys(
        ("read", "without_problem", "without_answer", "over_max_chars", "repeated", "contradictory"), 0
    )
    by_text: dict[str, list[Sentence]] = {}
    for index, row in enumerate(read_rows(config, context)):
        text = value_as_text(f"hub.text={config.text}: row {index}", row[config.text])
        answer = value_as_text(f"hub.answer={config.answer}: row {index}", row[config.answer]) if config.answer else ""
        counts["read"] += 1
        if not text or (config.answer and not answer):
            counts["without_answer" if text else "without_problem"] += 1
            continue
        if config.max_chars and len(text) > config.max_chars:
            counts["over_max_chars"] += 1
            continue
        shown = context_of(f"hub.path={config.path} row {index}", context, row)
        problem = Sentence(index, text, answer, group=index, slice=TRANSLATION, language="", context=shown)
        by_text.setdefault(" ".join(text.split()), []).append(problem)
    sentences = []
    for same in by_text.values():
        if len({problem.label for problem in same}) > 1:
            counts["contradictory"] += len(same)
            continue
        counts["repeated"] += len(same) - 1
        sentences.append(same[0])
    if len(sentences) < 2:
        raise ValueError(f"hub.path={config.path}: {len(sentences)} problems with an answer; give at least 2")
    over = max(0, len(sentences) - config.max_rows) if config.max_rows else 0
    if over:
        sentences = sorted(random.Random(seed).sample(sentences, config.max_rows), key=lambda s: s.index)
    return Problems(sentences, counts | {"over_max_rows": over, "kept": len(sentences)})


def read_rows(config: HubConfig, context: str = "") -> Iterable[Mapping[str, Any]]:
    """The rows, each with both columns, and the one of `context` where there is one."""
    rows, columns = _file_rows(config) if Path(config.path).suffix in FILES else _dataset_rows(config)
    for key, column in (("text", config.text), ("answer", config.answer)):
        if column not in columns and not (key == "answer" and not column):
            without = "; hub.answer= for rows without one" if key == "answer" else ""
            raise ValueError(f"hub.{key}={column}: no such column; name one of {', '.join(columns)}{without}")
    if context and context not in columns:
        raise ValueError(f"context={context}: no such column; name one of {', '.join(columns)}")
    return rows


def _file_rows(config: HubConfig) -> tuple[Iterable[Mapping[str, Any]], Sequence[str]]:
    """Of one file; numbers stay exact, which the `datasets` library does not keep them."""
    where, path = f"hub.path={config.path}", Path(config.path)
    if not path.is_file():
        raise ValueError(f"{where}: no such file; correct the path")
    if config.name or config.revision:
        raise ValueError(f"hub.name={config.name}, hub.revision={config.revision}: a file has neither; leave them out")
    if config.split != HubConfig.split:
        raise ValueError(f"{where} hub.split={config.split}: Unknown split; a file has {HubConfig.split} alone")
    found = [record.values for record in records(path)]
    columns = list(dict.fromkeys(name for values in found for name in values))
    return [dict.fromkeys(columns) | values for values in found], columns


def _is_cached(name: str) -> bool:
    """Rows of this data set were read here before."""
    from datasets import config as settings

    return (Path(settings.HF_DATASETS_CACHE) / name.replace("/", "___")).is_dir()


def _fetch(config: HubConfig) -> str:
    return (
        f"copy the folder made by `hf download --repo-type dataset {config.path} --local-dir DIR` where there is a "
        "network, and set hub.path=DIR"
    )


def _dataset_rows(config: HubConfig) -> tuple[Iterable[Mapping[str, Any]], Sequence[str]]:
    """Of the hub, or of a folder of data files."""
    import datasets
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    where, path = f"hub.path={config.path}", Path(config.path)
    if not path.is_dir() and (config.path.count("/") != 1 or config.path.startswith(".")):
        raise ValueError(f"{where}: no such folder, and no owner/name of the hub")
    if not path.is_dir() and not constants.HF_HUB_OFFLINE and not _is_cached(config.path):
        error = asked_hub(config.path, ".gitattributes", "dataset")  # load_dataset alone asks for half a minute
        if error is not None and not isinstance(error, HfHubHTTPError):
            raise ValueError(f"{where}: not read here before, and the hub cannot be asked ({error}); {_fetch(config)}")
    which: dict[str, Any] = {"name": config.name or None, "revision": config.revision or None}
    if path.is_dir():
        with _one_line(where, config):
            builder: Any = datasets.load_dataset_builder(config.path, **which)
        _check_inside(where, path, builder.config.data_files or {})
    with _one_line(where, config):
        rows: Any = datasets.load_dataset(config.path, split=config.split, **which)
    return rows, rows.column_names


@contextlib.contextmanager
def _one_line(where: str, config: HubConfig) -> Iterator[None]:
    """What `datasets` raises as a ValueError that names the setting."""
    from datasets.exceptions import DatasetsError

    try:
        yield
    except ConnectionError as error:
        raise ValueError(
            f"{where}: {error}. Unset HF_HUB_OFFLINE where there is a network; elsewhere {_fetch(config)}"
        ) from error
    except (FileNotFoundError, ValueError, RuntimeError, DatasetsError) as error:
        raise ValueError(f"{where} hub.name={config.name} hub.split={config.split}: {error}") from error


def _check_inside(where: str, folder: Path, data_files: Mapping[str, Sequence[str]]) -> None:
    """Refuse a folder whose README.md or links have files read that are not in it.

    A snapshot in the hub's cache is links to the folder `blobs` beside it.

    Raises:
        ValueError: naming the file.
    """
    folder = folder.resolve()
    inside = folder.parents[1] if folder.parent.name == "snapshots" else folder
    for file in [each for files in data_files.values() for each in files]:
        if "://" not in file and not Path(file).resolve().is_relative_to(inside):
            raise ValueError(
                f"{where}: {file} would be read, which is not in the folder; copy it there, or take it out"
            )
