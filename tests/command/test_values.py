"""Every setting, tried with what people type by mistake: each value is taken because it is documented, or refused.

Generated from the fields of the settings dataclasses and from the keys of `verl_ext.checks.verl_values`, of both
trainers' help and of docs/configuration.md. A refusal is one line that names the key.
"""

import contextlib
import functools
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra import compose
from omegaconf import DictConfig, OmegaConf, open_dict
from tiny_student import ROW, write_student

from recipe import create_data, demo, evaluate, generate, on_policy_distillation, score, sft, tiny_pair
from recipe import doctor as doctor_verb
from verl_ext.checks import memory
from verl_ext.checks.check import TRAIN
from verl_ext.checks.config import DoctorConfig
from verl_ext.checks.context import context_of_run
from verl_ext.checks.finding import FAIL
from verl_ext.checks.run import check_sft, look, refuse
from verl_ext.checks.verl_values import FIXED
from verl_ext.checks.verl_values import SFT as SFT_RANGES
from verl_ext.checks.verl_values import TRAIN as TRAIN_RANGES
from verl_ext.data.create import check_source
from verl_ext.plan.hardware import HardwareConfig, hardware_of
from verl_ext.run.field_docs import field_docs
from verl_ext.run.overrides import Known, check_key, parsed_word
from verl_ext.run.settings import settings_of
from verl_ext.run.verb import Verb
from verl_ext.sft.config import SftConfig
from verl_ext.sft.keys import KEYS as SFT_KEYS
from verl_ext.teacher.config import TeacherConfig
from verl_ext.trainer.config import MethodConfig
from verl_ext.trainer.keys import KEYS as TRAIN_KEYS
from verl_ext.trainer.pipeline_config import PipelineConfig
from verl_ext.trainer.replay.config import ReplayConfig
from verl_ext.trainer.report_config import ReportConfig

ROOT = Path(__file__).parents[2]
WRONG_NUMBERS = ("abc", "true", "0", "-1", "2.5", "nan", "inf", "1e30", "null")
WRONG_SWITCHES = ("maybe", "3", "2.5", "[true]", "null")
WRONG_TEXTS = ("[a]", "{a: 1}", "null")
WRONG_LISTS = ("a", "{a: 1}", "null", "7")


class Command(NamedTuple):
    """A verb with what it must be given, and what refuses its settings."""

    verb: Verb
    words: tuple[str, ...]
    refuse: Callable[[DictConfig], Any]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("values")
    write_student(folder / "base")
    pq.write_table(pa.Table.from_pylist([ROW] * 64), folder / "rows.parquet")
    turn = {"role": "assistant", "content": "en"}
    pq.write_table(pa.Table.from_pylist([{"messages": [*ROW["prompt"], turn]}] * 64), folder / "conversations.parquet")
    return folder


def settings_class(kind: type) -> Callable[[DictConfig], Any]:
    return lambda config: settings_of(config, kind)


def rows_settings(config: DictConfig) -> None:
    check_source(settings_of(config, create_data.CreateDataConfig))


def training(config: DictConfig) -> None:
    """What training refuses, the doctor shows as failed: it goes on to the other checks, over the wrong value."""
    failed = [finding.seen for finding in look(context_of_run(config)) if finding.verdict == FAIL]
    with pytest.raises(ValueError, match=" ") if failed else contextlib.nullcontext() as caught:
        refuse(TRAIN, context_of_run(config))
    if caught is not None:
        assert any(seen in str(caught.value) for seen in failed), failed
        raise caught.value


def looking(config: DictConfig) -> None:
    settings_of(config.doctor, DoctorConfig)


RUN = ("platform=cpu", "task=demo", "student.path=FOLDER/base", "data.train_files=FOLDER/rows.parquet")
TRAINED = (*RUN, "data.val_files=FOLDER/rows.parquet", f"teacher.python={sys.executable}", "run_dir=FOLDER/run")
TUNED = (*RUN[:3], "data.train_files=FOLDER/conversations.parquet", "run_dir=FOLDER/run", "data.train_batch_size=32")
COMMANDS = {
    "train": Command(on_policy_distillation.VERB, TRAINED, training),
    "sft": Command(sft.VERB, TUNED, lambda config: check_sft(config, 1)),
    "doctor": Command(doctor_verb.VERB, TRAINED, looking),
    "data": Command(create_data.VERB, (), rows_settings),
    "generate": Command(generate.VERB, ("model=m", "data=d"), settings_class(generate.GenerateConfig)),
    "score": Command(
        score.VERB, ("data=d", "teacher.model_path=m", "teacher.device=cpu"), settings_class(score.ScoreConfig)
    ),
    "evaluate": Command(evaluate.VERB, ("data=d", "base=m"), settings_class(evaluate.EvaluateConfig)),
    "demo": Command(demo.VERB, (), settings_class(demo.DemoConfig)),
    "tiny-pair": Command(tiny_pair.VERB, (), settings_class(tiny_pair.TinyPairConfig)),
}


@pytest.fixture(scope="module")
def try_word(run_folder) -> Callable[[str, str], str | None]:
    """What a command says to one more word, None where it takes it: composed once a command, the word is undone."""

    @functools.cache
    def known_of(name: str) -> Known:
        verb, words, _ = COMMANDS[name]
        with verb.composing():
            given = [word.replace("FOLDER", str(run_folder)) for word in words]
            config = compose(verb.name, [*verb.added, *given], return_hydra_config=True)
        known = Known(config, verb.keys)
        with open_dict(known.config):
            del known.config["hydra"]
        return known

    def attempt(name: str, word: str) -> str | None:
        known, command = known_of(name), COMMANDS[name]
        try:
            with undone(known, word) as override:
                check_key(known, override)
                OmegaConf.update(known.config, override.key_or_group, override.value())
                command.refuse(known.config)
        except ValueError as error:
            return str(error)
        return None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "CPU_BASE_GIB", 0.0)  # what else runs on this machine is not under test
        yield attempt


@functools.cache
def parsed(word: str) -> Any:
    return parsed_word(word, ())


@contextlib.contextmanager
def undone(known: Known, word: str) -> Iterator[Any]:
    override = parsed(word)
    node, name = known.place(override.key_or_group)
    raw = OmegaConf.to_container(node, resolve=False)
    try:
        yield override
    finally:
        OmegaConf.update(known.config, override.key_or_group, raw[name], force_add=True)


def documented(text: str, whole: bool) -> Callable[[float], bool]:
    """Which numbers a field's text allows: `>= 1`, `> 0`, `in (0, 1]`, `0 to 65535`, `0 for none`."""
    bounds: list[Callable[[float], bool]] = []
    for sign, low in re.findall(r"(>=|>) (-?\d+(?:\.\d+)?)", text):
        bounds.append(lambda x, s=sign, a=float(low): x >= a if s == ">=" else x > a)
    for left, low, high, right in re.findall(r"[iI]n ([\[(])(-?[\d.]+), ([\d.]+)([\])])", text):
        bounds.append(
            lambda x, a=float(low), b=float(high), at=left == "[", to=right == "]": (
                a < x < b or (at and x == a) or (to and x == b)
            )
        )
    if "any integer" in text:
        bounds.append(lambda _: True)
    for low, high in re.findall(r"(\d+) to (\d+)", text):
        bounds.append(lambda x, a=float(low), b=float(high): a <= x <= b)
    if "0 < x < 1" in text:
        bounds.append(lambda x: 0 < x < 1)
    assert bounds, f"no range is documented: {text}"
    plain = re.sub(r"(>=|>) -?\d+|[iI]n [\[(][^\])]*[\])]", "", text)
    special = {
        float(number)
        for number in re.findall(r"(-?\d+)(?: \(| for| is| keeps| picks| asks| turns| trains| leaves| never|:)", plain)
    }
    unbounded = ".inf" in text

    def allowed(value: float) -> bool:
        if value == float("inf"):
            return unbounded
        if value != value or (abs(value) >= 1e30 and not unbounded) or (whole and value != int(value)):
            return False
        return value in special or all(bound(value) for bound in bounds)

    return allowed


def settings_fields() -> Iterator[tuple[str, str, Any, str]]:
    """Command, key, type and text of every field of every settings dataclass that a command reads."""
    owners = {
        "train": {
            "method": MethodConfig,
            "teacher": TeacherConfig,
            "pipeline": PipelineConfig,
            "replay": ReplayConfig,
            "report": ReportConfig,
        },
        "sft": {"sft": SftConfig},
        "doctor": {"doctor": DoctorConfig},
    }
    for name, command in COMMANDS.items():
        for prefix, kind in owners.get(name, command.verb.settings).items():
            yield from ((name, *row) for row in below(kind, prefix))


def below(kind: type, prefix: str) -> Iterator[tuple[str, Any, str]]:
    hints, docs = get_type_hints(kind), field_docs(kind)
    for field in fields(kind):
        key = f"{prefix}.{field.name}".lstrip(".")
        if is_dataclass(hints[field.name]):
            yield from below(hints[field.name], key)
        else:
            yield key, hints[field.name], docs[field.name]


FIELDS = [row for row in settings_fields() if row[0] != "score" or not row[1].startswith("teacher.")]


def is_a_line_that_names(key: str, message: str) -> bool:
    return "\n" not in message and key.split(".")[-1] in message and len(message) < 500


@pytest.mark.parametrize(("command", "key", "kind", "text"), FIELDS, ids=[f"{row[0]}-{row[1]}" for row in FIELDS])
def test_a_setting_takes_what_its_text_says(try_word, command, key, kind, text):
    listed = get_origin(kind) is list
    types = {list} if listed else set(get_args(kind)) or {kind}
    null_is_legal = type(None) in types
    numeric, whole = bool(types & {int, float}), float not in types
    legal = documented(text, whole) if numeric else None
    wrong = WRONG_LISTS if listed else WRONG_NUMBERS if numeric else WRONG_SWITCHES if bool in types else WRONG_TEXTS
    for typed in wrong:
        said = try_word(command, f"{key}={typed}")
        value = parsed(f"{key}={typed}").value()
        if value is None:
            taken = null_is_legal
        elif legal is not None:
            taken = isinstance(value, int | float) and not isinstance(value, bool) and legal(value)
        else:
            taken = False
        assert taken or said is not None, f"{key}={typed} is taken, and its text says: {text}"
        assert said is None or is_a_line_that_names(key, said), said


@pytest.mark.parametrize(
    ("command", "key"),
    [
        *(("train", key) for key in ("student.path", "data.train_files", "data.val_files")),
        *(("sft", key) for key in ("student.path", "data.train_files")),
    ],
)
def test_what_is_left_out_is_asked_for_and_nothing_of_verls_stands_in_for_it(command, key):
    verb, words, refuse_settings = COMMANDS[command]
    with verb.composing():
        config = compose(verb.name, [word for word in words if not word.startswith(f"{key}=")])
    with pytest.raises(ValueError, match=rf"^{key} is not set: give {key}=\.\.\.$"):
        refuse_settings(config)
    for section in ("data", "student", "teacher"):
        assert "~/" not in OmegaConf.to_yaml(config.get(section, {}))


CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text()
VERLS = r"(?:data|actor_rollout_ref|algorithm|trainer|ray_kwargs)\.[a-z_.]+[a-z]"
FILES = ("_files", ".parquet", ".md")
NAMED = {key for key in re.findall(rf"(?<![\w.]){VERLS}", CONFIGURATION) if not key.endswith(FILES)}
TEXTS = {"data.train_files", "data.val_files", "student.path", "run_dir"}


def test_every_key_of_verls_that_the_documentation_names_has_a_range():
    # Of these a word on the command line says all that can be wrong, or a check of their own does.
    others = {"trainer.logger", "ray_kwargs.ray_init.address", "actor_rollout_ref.rollout.n", "data.val_files"}
    others |= {"actor_rollout_ref.rollout.nnodes", "actor_rollout_ref.model.enable_activation_offload"}
    others |= {
        f"actor_rollout_ref.rollout.{key}" for key in ("multi_turn.function_tool_path", "agent.default_agent_loop")
    }
    assert {key for key in NAMED if key not in TRAIN_RANGES | FIXED | SFT_RANGES} - others == set()
    ours = {key for key in TRAIN_KEYS if not key.startswith(("method.", "teacher.", "pipeline.", "replay."))}
    assert ours - TEXTS - set(TRAIN_RANGES) == set()


VERL_KEYS = [("train", key) for key in TRAIN_RANGES] + [("sft", key) for key in SFT_RANGES]


@pytest.mark.parametrize(("command", "key"), VERL_KEYS, ids=[f"{command}-{key}" for command, key in VERL_KEYS])
def test_a_key_of_verls_refuses_nonsense(try_word, command, key):
    rule = (TRAIN_RANGES if command == "train" else SFT_RANGES)[key]
    for typed in (*WRONG_NUMBERS, "maybe"):
        said = try_word(command, f"{key}={typed}")
        if not rule.takes(parsed(f"{key}={typed}").value()):
            assert said is not None, f"{key}={typed} is taken"
        assert said is None or is_a_line_that_names(key.split("[")[0], said), said


def test_the_ranges_are_those_that_help_shows():
    for keys, ranges in ((TRAIN_KEYS, TRAIN_RANGES), (SFT_KEYS, SFT_RANGES)):
        for key, text in keys.items():
            if key in ranges and re.search(r"> |>= |in [(\[]", text):
                legal = documented(text, whole=False)
                for value in (0, -1, 1):
                    assert ranges[key].takes(value) == legal(value), (key, value, text)


@pytest.mark.parametrize("key", FIXED)
def test_a_key_that_the_method_needs_as_it_stands_is_kept(try_word, key):
    for typed in ("3", "other", "true", "false", "null", "nan"):
        said = try_word("train", f"{key}={typed}")
        if not FIXED[key].takes(parsed(f"{key}={typed}").value()):
            assert said is not None, f"{key}={typed} is taken"
            assert is_a_line_that_names(key, said), said


def test_a_machine_is_described_by_numbers():
    machine = {"name": "m", "device_memory_gib": 8, "devices_per_node": 1, "nodes": 1, "host_memory_gib": 8}
    hardware_of(OmegaConf.create(machine))
    hints = get_type_hints(HardwareConfig)
    for key in (key for key in machine if hints[key] in (int, float)):
        for value in (0, -1, float("nan"), float("inf"), "abc", None):
            with pytest.raises(ValueError, match=f"hardware.*{key}"):
                hardware_of(OmegaConf.create(machine | {key: value}))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("train", *TRAINED[:5], "actor_rollout_ref.rollout.n=0"), "actor_rollout_ref.rollout.n=0 must be"),
        (("sft", "platform=cpu", *RUN[2:], "optim.lr=nan"), "optim.lr=nan: expected a number"),
        (("generate", "model=FOLDER/base", "data=FOLDER/rows.parquet", "n=-1"), "n=-1 must be >= 1"),
    ],
)
def test_a_command_says_it_in_one_line_and_starts_nothing(run_folder, tmp_path, words, says):
    done = subprocess.run(
        [sys.executable, "-m", "recipe", *(word.replace("FOLDER", str(run_folder)) for word in words)],
        **{"cwd": tmp_path, "capture_output": True, "text": True, "check": False},
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
