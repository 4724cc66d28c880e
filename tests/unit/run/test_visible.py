"""Nothing that a terminal obeys comes out of this program as it came in."""

import io
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from verl_ext.evaluation.answers import Judged, print_wrong
from verl_ext.run.terminal import Terminal
from verl_ext.run.visible import print as print_visible
from verl_ext.run.visible import visible

BIDI = ("LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI")
HOSTILE = "\x1b[2J\x1b]52;c;ZXZpbA==\x07\r\x9b31m\u202etxt.exe\x00\x7f\x08"


def test_everything_that_is_obeyed_is_shown_as_its_escape():
    assert visible(HOSTILE) == "\\x1b[2J\\x1b]52;c;ZXZpbA==\\x07\\r\\x9b31m\\u202etxt.exe\\x00\\x7f\\x08"
    assert visible("plain\ttext\n漢字 العربية \U0001f600 [red]") == "plain\ttext\n漢字 العربية \U0001f600 [red]"
    assert visible(os.fsdecode(b"\xff.jsonl")) == "\\udcff.jsonl"
    for code in range(0x110000):
        character = chr(code)
        if unicodedata.category(character) in ("Cc", "Cs", "Zl") or unicodedata.bidirectional(character) in BIDI:
            assert (visible(character) == character) == (character in "\t\n"), hex(code)


def test_print_shows_it(capsys):
    print_visible(HOSTILE, Path(f"a{HOSTILE}"), sep="|", end="!\n")
    assert "\x1b" not in (out := capsys.readouterr().out)
    assert out.endswith("\\x08!\n")
    assert out.count("|") == 1


def shown_by(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_console_shows_text_as_it_stands_and_keeps_its_own_colours():
    console = Terminal(file=io.StringIO(), force_terminal=True, width=200)
    table = Table("name", title=f"[bold]{HOSTILE}[/bold]")
    table.add_row(Text(HOSTILE, "red"))
    console.print(table)
    console.print(f"[link=http://x]{HOSTILE}[/nothing] :smile:", highlight=False)
    with Progress(TextColumn("{task.description}", markup=False), console=console) as progress:
        progress.add_task(HOSTILE)
    shown = shown_by(console)
    assert "\x1b[31m" in shown  # red is ours
    assert "[link=http://x]\\x1b[2J" in shown
    assert "[/nothing] :smile:" in shown
    for obeyed in ("\x1b[2J", "\x1b]52", "\x07", "\x9b", "\u202e", "\x00", "\x7f", "\x08"):
        assert obeyed not in shown, repr(obeyed)
        assert obeyed in HOSTILE


def test_wrong_answers_are_shown_and_not_obeyed(capsys):
    judged = Judged("student", 3, False, "?", HOSTILE, "", HOSTILE, False, "stop", False, 9)
    print_wrong({HOSTILE: [judged]})
    shown = capsys.readouterr().out
    assert "\\x1b[2J" in shown
    assert "\x1b" not in shown


def test_the_command_line_is_answered_without_it():
    words = [sys.executable, "-m", "recipe", HOSTILE.replace("\0", "")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "\\x1b[2J" in done.stderr
    assert "\x1b" not in done.stderr + done.stdout
