"""However a verb ends, its user reads one line; the traceback is kept, and shown where it is asked for."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from verl_ext.run.command import pipe_may_close
from verl_ext.run.files import check_writable
from verl_ext.run.stop import Signalled
from verl_ext.run.verb import Verb, one_line_errors

VERB = Verb("none", doc="", settings={})


def ended_with(error: BaseException, debug: bool = False) -> str:
    with pytest.raises(SystemExit) as ended, one_line_errors(VERB, debug):
        raise error
    return str(ended.value)


def test_an_error_of_the_user_is_its_message():
    assert ended_with(ValueError("n=0 must be >= 1;\n  set it")) == "error: n=0 must be >= 1; set it"


def test_an_interrupted_verb_says_so_with_the_status_of_a_process_that_a_signal_ended(capsys):
    assert ended_with(KeyboardInterrupt()) == "130"
    assert ended_with(Signalled(signal.SIGTERM)) == "143"
    assert capsys.readouterr().err == "interrupted\ninterrupted\n"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (KeyError("x"), "error: KeyError: 'x'"),
        (OSError(28, "No space left on device", "/run/metrics.jsonl"), "No space left on device: '/run/metrics.jsonl'"),
        (
            RuntimeError("it ended, its log:\n1\n2\n3\nout of memory"),
            "it ended, its log: out of memory",
        ),
    ],
)
def test_any_other_error_is_one_line_and_a_file_with_the_traceback(error, says):
    line = ended_with(error)
    assert says in line
    assert "\n" not in line
    file = Path(line.partition("; traceback: ")[2].removesuffix(", or --debug"))
    assert "in ended_with" in file.read_text()
    file.unlink()


@pytest.mark.parametrize("error", [KeyError("x"), ValueError("x")])
def test_debug_shows_the_traceback(error):
    with pytest.raises(type(error)), one_line_errors(VERB, debug=True):
        raise error


def test_a_reader_that_stops_ends_a_command_without_a_word(pytestconfig):
    code = "from verl_ext.run.command import pipe_may_close\nwith pipe_may_close():\n    print('line\\n' * 100000)"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=pytestconfig.rootpath, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"line\n"
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait() == 1


def test_another_broken_pipe_is_an_error(monkeypatch):
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with pytest.raises(BrokenPipeError), pipe_may_close():
            raise BrokenPipeError("of a socket")
    os.close(reading)


def test_where_something_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    assert check_writable("out", "new/eval.json") == tmp_path / "new" / "eval.json"
    assert check_writable("out", "file") == tmp_path / "file"
    assert check_writable("run_dir", "new", folder=True) == tmp_path / "new"
    for path, folder, says in (
        (None, False, "out=None is no path: give out=... (a file)"),
        ("", True, "is no path: give out=... (a folder)"),
        (3, True, "out=3 is no path"),
        (".", False, "out=. is a folder: give a file"),
        ("file", True, "out=file is a file: give a folder"),
        ("file/x", True, f"is below {tmp_path}/file, which is a file"),
        ("file/x/y", False, f"is below {tmp_path}/file, which is a file"),
    ):
        with pytest.raises(ValueError, match=r"^out=") as refused:
            check_writable("out", path, folder=folder)
        assert says in str(refused.value)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(ValueError, match=r"cannot be written: give another place, or change its permissions"):
        check_writable("out", "new/eval.json")
