"""The job of `create_data`: sentences and a prompt in, parquet and a manifest out; run again, it changes nothing."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from verl_ext.data.chats import CHAT, FORMS, Chat, answered, chat_row, load_chats
from verl_ext.data.conversations import to_jsonl
from verl_ext.data.hub import HubConfig, load_problems
from verl_ext.data.privileged import check_context
from verl_ext.data.rows import LANGUAGE, MOST_LABELS, PLACEHOLDER, SCHEMA, SPLITS, make_row, read_prompt
from verl_ext.data.sentences import (
    Sentence,
    cut,
    cut_chars,
    file_sentences,
    repeated,
    split,
    tinker_file,
    tinker_sentences,
    token_cutter,
)
from verl_ext.data.text_files import read_text
from verl_ext.run.files import write_atomically, write_json
from verl_ext.run.outputs import is_complete
from verl_ext.run.settings import above

DERIVED = ("conversations.jsonl", "conversations.parquet", "labels_manifest.json", "chats.jsonl")
"""Files that are made of the rows, or beside them."""


@dataclass(frozen=True)
class RowsConfig:
    """Which rows are made, and where."""

    out_dir: str = "outputs/data"
    """Directory of the parquet files and the manifest; made when missing."""
    source: str = "tinker"
    """`tinker`: the 2,100 sentences of the installed tinker-cookbook; `file`: those of `sentences`; `hub`: `hub`'s;
    `openai`, `sharegpt`, `verl`: the chats of `sentences` (docs/data.md)."""
    sentences: str = ""
    """Path of your file: .txt, one sentence a line; .jsonl, .json, .csv, .tsv or .parquet of sentences, or chats."""
    hub: HubConfig = field(default_factory=HubConfig)
    """Problems with answers, of the hub or of local files (verl_ext/data/hub.py); only with source=hub."""
    prompt: str = "short"
    """What the teacher sees: `short`, `math` (files of data/prompts), `tinker` (3,765 characters), the path of a text
    file with {text}, or `none`: the sentence alone. Chats have their own."""
    system: str = ""
    """Path of a text file that the teacher sees as its system message, in every row; empty: none but those of chats."""
    student_prompt: str = ""
    """The same for the student; empty: the sentence alone. The teacher's own prompt, where nothing but another model
    shall make the teacher."""
    context: str = ""
    """Column of the source that the teacher alone is shown, where its prompt has {context}: a solution, a feedback.
    Every row must have it. Empty: none."""
    data_source: str = LANGUAGE
    """Name of the task in the column `data_source`, which rewards and evaluation go by: `math` reads \\boxed{}."""
    heldout_fraction: float = 0.15
    """Share of the translation groups that is held out, in (0, 1)."""
    seed: int = 0
    """Which groups are held out; any integer."""
    max_chars: int = 0
    """Cut sentences to this many characters, in both messages alike, at a space where there is one, >= 0; 0
    for no cut."""
    max_sentence_tokens: int = 0
    """Cut sentences to this many tokens of `tokenizer`, in both messages alike, >= 0; 0 for no cut."""
    tokenizer: str = ""
    """Directory of the tokenizer that `max_sentence_tokens` counts with; only with it."""
    overwrite: bool = False
    """Replace outputs that were made with other settings; answers sampled under the same settings are kept."""

    def __post_init__(self) -> None:
        above("heldout_fraction", self.heldout_fraction, 0, below=1)


@dataclass(frozen=True)
class Source:
    """Sentences, and what the manifest says about where they come from."""

    sentences: list[Sentence]
    name: str
    """File, or `owner/name` on the hub."""
    md5: str
    """Of the file, or of the problems and answers that were kept."""
    counts: dict[str, int]
    """Rows of the hub, or chats, by what became of them; empty for sentences."""
    notes: list[str] = field(default_factory=list)
    """What to say about them, a line each."""


def check_source(config: RowsConfig) -> None:
    """ValueError if settings that belong together are apart, or the other way round."""
    if config.source not in ("tinker", "file", "hub", *FORMS):
        raise ValueError(f"source={config.source}: expected tinker, file, hub, {', '.join(FORMS)}")
    if (config.source in ("file", *FORMS)) != bool(config.sentences):
        raise ValueError(f"sentences=PATH goes with source=file, {', '.join(FORMS)}, and only with them")
    if config.source in FORMS and (config.prompt != RowsConfig.prompt or config.student_prompt):
        raise ValueError(
            f"prompt, student_prompt: source={config.source} has its own; leave them out, or give system=FILE"
        )
    if config.system and config.source not in FORMS and config.prompt == RowsConfig.prompt:
        raise ValueError("system=FILE: set prompt too: none (the sentence alone), or what the sentence stands in")
    if config.source in FORMS and (config.max_chars or config.max_sentence_tokens):
        raise ValueError("max_chars, max_sentence_tokens: chats are not cut; leave them out")
    if config.max_chars < 0 or config.max_sentence_tokens < 0:
        key = "max_chars" if config.max_chars < 0 else "max_sentence_tokens"
        raise ValueError(f"{key}={vars(config)[key]} must be >= 0; 0 for no cut")
    if bool(config.max_sentence_tokens) != bool(config.tokenizer):
        raise ValueError("max_sentence_tokens and tokenizer go together: set both or neither")
    if config.source != "hub":
        if config.hub != HubConfig():
            raise ValueError(f"hub.* is read with source=hub only; source={config.source}")
        return
    if config.max_chars or config.max_sentence_tokens:
        raise ValueError(
            "max_chars, max_sentence_tokens: half a problem has another answer; leave them out with source=hub"
        )
    if config.prompt == "short" or config.data_source == LANGUAGE:
        raise ValueError(
            "source=hub: set prompt=math student_prompt=math data_source=math; the defaults name languages"
        )


def load_source(config: RowsConfig) -> Source:
    """The source's sentences, cut as the configuration says."""
    check_source(config)
    if config.source == "hub":
        problems = load_problems(config.hub, config.seed, config.context)
        content = json.dumps(
            [(each.text, each.label, *([each.context] if config.context else [])) for each in problems.sentences]
        )
        name = f"{config.hub.path}@{config.hub.revision}".removesuffix("@")
        return Source(problems.sentences, name, hashlib.md5(content.encode()).hexdigest(), problems.counts)
    if config.source in FORMS:
        return _load_chats(config)
    if config.source == "tinker":
        path, sentences = tinker_file("example_data", "multilingual.txt"), tinker_sentences()
    else:
        path = Path(config.sentences)
        sentences = file_sentences(path, config.context)
    if config.max_chars:
        sentences = cut(sentences, partial(cut_chars, max_chars=config.max_chars))
    if config.max_sentence_tokens:
        sentences = cut(sentences, token_cutter(Path(config.tokenizer), config.max_sentence_tokens))
    return Source(sentences, path.name, hashlib.md5(path.read_bytes()).hexdigest(), {})


def _load_chats(config: RowsConfig) -> Source:
    path = Path(config.sentences)
    if not path.is_file():
        raise FileNotFoundError(f"sentences={path}: no such file; correct the path")
    name = CHAT if config.data_source == RowsConfig.data_source else config.data_source
    found = load_chats(path, config.source, read_system(config), name)
    read, prompted, with_answer = (found.counts[key] for key in ("read", "with_system", "with_answer"))
    notes = [f"{prompted} of {read} chats have a system message, which the teacher sees alone"] if prompted else []
    if all(chat.prompt == chat.teacher for chat in found.chats):
        notes = [
            f"warning: the teacher sees what the student sees in all {read} rows: take another model, or system=FILE"
        ]
    if with_answer:
        notes.append(f"the last answer of {with_answer} chats is in no row: the student samples its own")
    if found.unused:
        notes.append(f"columns not used: {', '.join(found.unused)}")
    content = hashlib.md5(path.read_bytes()).hexdigest()
    return Source(list(found.chats), path.name, content, found.counts, notes)


def read_system(config: RowsConfig) -> str:
    """The teacher's system message; "" for none."""
    if not config.system:
        return ""
    path = Path(config.system)
    if not path.is_file():
        raise FileNotFoundError(f"system={path}: no such file; give the path of a text file")
    if not (text := read_text(path).strip()):
        raise ValueError(f"system={path}: the system message is empty; write it, or leave system out")
    return text


def describe(config: RowsConfig, source: Source, template: str, student_template: str) -> dict[str, Any]:
    """What decides the rows: the settings, with files and data sets named by content and not by place."""
    places = ("out_dir", "sentences", "hub", "prompt", "student_prompt", "system", "tokenizer", "overwrite")
    places += () if config.context else ("context",)
    names = [field.name for field in fields(RowsConfig) if field.name not in places]
    settings: dict[str, Any] = {name: getattr(config, name) for name in names}
    settings["source_md5"] = source.md5
    settings["prompt_sha256"] = hashlib.sha256(template.encode()).hexdigest()
    if config.student_prompt:
        settings["student_prompt_sha256"] = hashlib.sha256(student_template.encode()).hexdigest()
    if config.system:
        settings["system_sha256"] = hashlib.sha256(read_system(config).encode()).hexdigest()
    if config.tokenizer:
        tokenizer = Path(config.tokenizer) / "tokenizer.json"
        settings["tokenizer_sha256"] = hashlib.sha256(tokenizer.read_bytes()).hexdigest()
    return settings


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), sink)
    return sink.getvalue().to_pybytes()


def package_version() -> str:
    try:
        return metadata.version("verl-opd")
    except metadata.PackageNotFoundError:  # run from a clone that is not installed
        return "not installed"


def create_rows(config: RowsConfig, prompts: Path) -> str:
    """Write the files; returns the lines to print. `prompts`: folder of the prompts that have a name."""
    source = load_source(config)
    template = PLACEHOLDER if config.source in FORMS else read_prompt("prompt", config.prompt, prompts)
    student_template = PLACEHOLDER
    if config.student_prompt:
        student_template = read_prompt("student_prompt", config.student_prompt, prompts)
    check_context(config.context, config.source, template, student_template)
    splits = split(source.sentences, config.heldout_fraction, config.seed)
    notes = [*source.notes, *repeated(splits), *([] if source.counts else unseen_labels(splits))]
    settings = describe(config, source, template, student_template)
    out_dir = Path(config.out_dir)
    names = [f"{name}.parquet" for name in SPLITS] + (["chats.jsonl"] if source.counts.get("with_answer") else [])
    if is_complete(out_dir, "manifest.json", names, settings, config.overwrite):
        return f"{out_dir}: up to date"
    contents = {name: content_of(name, splits, config, template, student_template) for name in names}
    manifest = {
        "version": package_version(),
        "settings": settings,
        "source_file": source.name,
        **({"hub": asdict(config.hub) | {"rows": source.counts}} if config.source == "hub" else {}),
        **({"chats": source.counts} if config.source in FORMS else {}),
        "prompt": config.prompt,
        "student_prompt": config.student_prompt,
        "prompt_chars": len(template),
        "notes": notes,
        "counts": {
            name: {
                "rows": len(part),
                "groups": len({s.group for s in part}),
                # A label a problem says nothing.
                "labels": {} if source.counts else dict(sorted(Counter(s.label for s in part).items())),
            }
            for name, part in splits.items()
        },
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
    }
    removed = remove_derived(out_dir) if config.overwrite else []
    write_json(out_dir / "manifest.json", manifest)
    for name, content in contents.items():
        write_atomically(out_dir / name, content)
    lines = [f"{out_dir}: " + ", ".join(f"{len(part)} {name}" for name, part in splits.items()) + " rows"]
    if removed:
        lines.append(f"removed what was made of the rows before: {', '.join(removed)}")
    return "\n".join([*lines, *notes])


def content_of(
    name: str, splits: Mapping[str, Sequence[Sentence]], config: RowsConfig, template: str, student_template: str
) -> bytes:
    """What a file of the output holds."""
    if name == "chats.jsonl":
        return to_jsonl([answered(chat) for chat in splits["train"] if isinstance(chat, Chat) and chat.answer])
    part, system = name.removesuffix(".parquet"), read_system(config)
    return parquet(
        [
            chat_row(sentence, part)
            if isinstance(sentence, Chat)
            else make_row(sentence, template, part, config.data_source, student_template, system)
            for sentence in splits[part]
        ]
    )


def remove_derived(out_dir: Path) -> list[str]:
    """Take away what was made of the rows that are replaced; answers stay, their journal knows what they answer."""
    there = [name for name in DERIVED if (out_dir / name).exists()]
    for name in there:
        (out_dir / name).unlink()
    return there


def unseen_labels(splits: Mapping[str, Sequence[Sentence]]) -> list[str]:
    """A line about labels that are evaluated and never trained on."""
    trained = {sentence.label for sentence in splits["train"]}
    held = {sentence.label for sentence in splits["heldout"]}
    unseen = sorted(label for label in held - trained if label)
    if not unseen or len(held | trained) > MOST_LABELS:
        return []
    return [f"warning: no training row has the label {', '.join(unseen)}: give more rows of it, or another seed"]
