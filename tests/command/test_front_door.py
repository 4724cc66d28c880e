"""`verl-opd`: every verb starts light, helps, completes, and fails in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recipe import CONFIGS
from recipe.__main__ import completions, main, overview
from verl_ext.run.command import VERBS, as_typed
from verl_ext.run.field_docs import doc_of, field_docs
from verl_ext.sft.torchrun import processes
from verl_ext.trainer.config import MethodConfig
from verl_ext.trainer.keys import KEYS

ROOT = Path(__file__).parents[2]
FRONT = [sys.executable, "-m", "recipe"]


def start(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*FRONT, *words], cwd=ROOT, capture_output=True, text=True, env=os.environ | environment, check=False
    )


def typed(monkeypatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["verl-opd", *words])
    main()


def test_every_file_of_recipe_is_a_verb():
    assert sorted(VERBS.values()) == sorted(path.stem for path in (ROOT / "recipe").glob("[a-z]*.py"))
    assert max(map(len, overview().splitlines())) <= 100
    assert max(len(path.read_text().splitlines()) for path in (ROOT / "recipe").glob("*.py")) <= 100


@pytest.mark.parametrize(
    ("word", "says"),
    [("trian", "did you mean train?"), ("serve", "serve-teacher?"), ("create_data", "did you mean data?")],
)
def test_an_unknown_verb_names_the_nearest(monkeypatch, word, says):
    with pytest.raises(SystemExit, match=f"^error: unknown verb {word}; .*{says}"):
        typed(monkeypatch, word)


@pytest.mark.parametrize("verb", VERBS)
def test_help_fits_on_two_screens_and_names_both_kinds_of_machine(monkeypatch, capsys, verb):
    typed(monkeypatch, verb, "--help")
    lines = capsys.readouterr().out.splitlines()
    assert (len(lines) <= 80, max(map(len, lines)) <= 100) == (True, True)
    text = "\n".join(lines)
    assert "    # on a CPU" in text
    assert "GPU" in text
    assert f"    verl-opd {verb}" in text
    assert "`--cfg job` shows the whole configuration" in text


def test_the_columns_of_help(monkeypatch, capsys):
    """To the letter: a key and its text, the lines that go on, the groups, the end."""
    typed(monkeypatch, "score", "--help")
    text = capsys.readouterr().out
    assert text.startswith(
        "Score sampled answers with a teacher, token by token: the other half of that step.\n\n    # on"
    )
    assert (
        """\n\nMust be given:
  data=...  File of `verl-opd generate`.

Settings and their defaults; any can be set with key=value:
  out=scored.parquet                  File for the answers with their scores; a managed teacher's
                                      log is beside it.
"""
        in text
    )
    assert (
        """
  teacher.api_key_env=TEACHER_API_KEY
                                      Environment variable with the server's API key, or, with
                                      `_FILE` behind its name, with the path of a file of mode 600
                                      that holds it; it ends in KEY, TOKEN or SECRET.
"""
        in text
    )
    assert (
        """

Groups, each a set of values:
  teacher=  bf16, cpu_bf16, cpu_fp32, fp8

More: docs/stages.md"""
        in text
    )
    assert text.endswith("resolved; `--debug` the traceback of an error.\n")


def test_help_of_training_reads_texts_and_defaults_where_they_are_written(monkeypatch, capsys):
    typed(monkeypatch, "train", "--help")
    text = " ".join(capsys.readouterr().out.split())
    for expected in (
        "Must be given: student.path=... ",
        "data.train_files=... Rows",
        "actor_rollout_ref.actor.optim.lr=0.0001 Learning rate",
        "method.coef=1 Weight of the reverse KL",
        "platform= cpu, cuda (default)",
        "teacher=   bf16".replace("   ", " "),
    ):
        assert expected in text
    assert {group.name for group in CONFIGS.iterdir() if f" {group.name}= " in text} == {
        *("hardware", "model", "platform", "task", "teacher", "update")
    }


def test_texts_of_fields_come_from_docstrings_and_from_strings_below_them():
    assert field_docs(MethodConfig)["clip"] == "bound of one token's absolute reverse KL, nats, > 0. None for no bound."
    assert doc_of(MethodConfig, "guards.prefix_steps").startswith("steps until the whole response is")
    assert {key for key, text in KEYS.items() if not text and not key.startswith(("method.", "teacher."))} == set()


def test_one_line_on_stderr_and_the_traceback_only_where_it_is_asked_for():
    wrong = start("evaluate", "dat=x")
    assert (wrong.returncode, wrong.stderr) == (1, "error: dat=x: unknown key dat; did you mean data?\n")
    for asked in (start("evaluate", "dat=x", "--debug"), start("evaluate", "dat=x", HYDRA_FULL_ERROR="1")):
        assert asked.returncode == 1
        assert "Traceback" in asked.stderr


def test_flags_and_overrides_in_any_order(monkeypatch, capsys):
    typed(monkeypatch, "evaluate", "data=x", "--cfg", "job", "limit=3")
    assert "\nlimit: 3\n" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="error: unrecognized arguments: --limit"):
        typed(monkeypatch, "evaluate", "--limit")


def test_a_key_that_is_named_like_a_folder_of_configs(monkeypatch, capsys):
    typed(monkeypatch, "score", "--cfg", "job", "model=MODEL", "data=x", "teacher=fp8")
    text = capsys.readouterr().out
    assert "\nmodel: MODEL\n" in text
    assert "quantization: fp8" in text


@pytest.mark.parametrize("name", ["data.train_files", "student.path"])
def test_what_must_be_given_has_no_default_of_verls(name):
    words = {"student.path": "student.path=x", "data.train_files": "data.train_files=x"}
    del words[name]
    missing = start("sft", "--nproc", "2", "platform=cpu", *words.values())
    assert (missing.returncode, missing.stderr) == (1, f"error: {name} is not set: give {name}=...\n")


def test_sft_starts_torchrun_for_as_many_processes_as_asked(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    started = []
    monkeypatch.setattr(os, "execv", lambda program, words: started.append((program, words)))
    typed(monkeypatch, "sft", "platform=cpu", f"student.path={tmp_path}", "--nproc", "3", "data.train_files=y")
    ((program, words),) = started
    assert program == words[0] == sys.executable
    assert Path(words[2]).is_file()
    assert words[1:] == [
        *("-P", words[2], "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"),
        *("--nproc-per-node", "3"),
        *("-m", "recipe.sft", "platform=cpu", f"student.path={tmp_path}", "data.train_files=y"),
    ]
    assert processes(["a=1"]) == (1, ["a=1"])
    with pytest.raises(SystemExit, match="error: --nproc 0: expected the number of processes"):
        processes(["--nproc", "0"])


def test_commands_are_shown_as_they_were_typed(monkeypatch):
    text = "python -m recipe.create_data --help"
    monkeypatch.setattr(sys, "argv", ["recipe/score.py"])
    assert as_typed(text) == text
    monkeypatch.setattr(sys, "argv", ["verl-opd score"])
    assert as_typed(text) == "verl-opd data --help"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("verl-opd tr", ["train"]),
        ("verl-opd evaluate --d", ["--debug"]),
        ("verl-opd plan ", ["memory", "throughput"]),
        ("verl-opd train hardware=h", ["hardware=h100_1x", "hardware=h100_8x", "hardware=h200_1x"]),
        ("verl-opd train actor_rollout_ref.actor.optim.lr=", ["actor_rollout_ref.actor.optim.lr=0.0001"]),
        ("verl-opd sft preset=seed pres", ["preset="]),
        ("verl-opd sft preset=seed model.lora_al", ["model.lora_alpha="]),
        ("verl-opd sft preset=seed model.lora_alpha=", ["model.lora_alpha=16"]),
        ("verl-opd train method.clip=", []),
        ("verl-opd train method.tail=", ["method.tail=true", "method.tail=false"]),
        ("verl-opd evaluate mod", []),
    ],
)
def test_completions(line, expected):
    assert completions(line) == expected


def test_bash_completes_with_what_the_command_prints(tmp_path):
    command = tmp_path / "verl-opd"
    command.write_text(f'#!/bin/sh\nexec {" ".join(FRONT)} "$@"\n')
    command.chmod(0o755)
    script = """
        eval "$(verl-opd --completion bash)"
        complete_line() {
            COMP_LINE="$1"; COMP_POINT=${#COMP_LINE}
            read -ra COMP_WORDS <<< "${COMP_LINE//=/ = }"
            [[ $COMP_LINE == *" " ]] && COMP_WORDS+=("")
            COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
            _verl_opd 2>/dev/null
            echo "${COMPREPLY[@]}"
        }
        complete_line "verl-opd serv"
        complete_line "verl-opd train hardware=h2"
        complete_line "verl-opd evaluate lim"
        complete -p verl-opd
    """
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PATH": path}, check=True
    )
    assert done.stdout.splitlines() == [
        "serve-teacher",
        "h200_1x",
        "limit=",
        "complete -o default -F _verl_opd verl-opd",
    ]
