"""A process that is forked instead of started is the same program, and lives and ends as it."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from verl_ext.platform import warm
from verl_ext.platform import warm_workers as warm_workers_module
from verl_ext.platform.warm_workers import python_of, torchs_openmp, warm_workers

pytestmark = pytest.mark.timeout(60)
SEEN = 'import os, sys; print("colorsys" in sys.modules, os.getpid(), os.getppid(), sys.argv, flush=True)'
ASKED = "import sys; print(sys.orig_argv[1:])"
WAITS = SEEN + "; import time; time.sleep(60)"
HEARD = "import os, sys; sys.stdout.write(os.environ['OWN'] + os.getcwd() + sys.stdin.read()); sys.exit(3)"
SPAWNS = """
import multiprocessing, os, sys
from verl_ext.platform.warm_workers import spawn_warm

def tell(queue):
    queue.put(("colorsys" in sys.modules, os.getpid()))

if __name__ == "__main__":
    spawn_warm()
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=tell, args=(queue,))
    process.start()
    warm, pid = queue.get()
    process.join()
    print(warm, pid != process.pid, process.exitcode)
"""


class Server:
    """What programs are forked from, and how they are asked for."""

    def __init__(self, folder: Path, module: str = "colorsys", **variables: str) -> None:
        self.path, self.log = str(folder / "warm"), folder / "log"
        command = [sys.executable, warm.__file__, "serve", self.path, "", module]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stderr=log, env=os.environ | variables)
        while not Path(self.path).exists():
            time.sleep(0.01)

    def ask(self, *arguments: str, **more) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*python_of(self.path), *arguments], text=True, capture_output=True, check=False, **more)

    def begin(self, *arguments: str) -> tuple[subprocess.Popen[str], psutil.Process]:
        """Who asked, and what was forked, which has said a line."""
        client = subprocess.Popen([*python_of(self.path), *arguments], text=True, stdout=subprocess.PIPE)
        assert client.stdout is not None
        return client, psutil.Process(int(client.stdout.readline().split(" ")[1]))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    found = Server(tmp_path)
    assert found.ask("-c", SEEN).stdout.startswith("False")  # the first, whose environment is taken
    yield found
    found.process.kill()
    found.process.wait()


def test_a_program_finds_what_was_imported_and_is_itself(server: Server, tmp_path: Path):
    (tmp_path / "program.py").write_text(SEEN)
    for arguments, argv in ((("-B", "-c", SEEN, "a b"), "['-c', 'a b']"), ((str(tmp_path / "program.py"),), "program")):
        imported, _, parent, said = server.ask(*arguments).stdout.split(" ", 3)
        assert (imported, int(parent)) == ("True", server.process.pid)
        assert argv in said
    assert server.ask("-c", ASKED, "--flag").stdout == f"{['-c', ASKED, '--flag']}\n"


def test_it_has_the_environment_folder_and_files_of_who_asked_and_they_its_status(server: Server, tmp_path: Path):
    done = server.ask("-c", HEARD, cwd=tmp_path, env=os.environ | {"OWN": "mine "}, input=" heard")
    assert (done.stdout, done.returncode) == (f"mine {tmp_path} heard", 3)


@pytest.mark.parametrize(
    ("options", "changed"), [((), {"OMP_NUM_THREADS": "7"}), ((), {"LD_PRELOAD": "no.so"}), (("-X", "dev"), {})]
)
def test_what_imports_would_do_otherwise_is_started_as_ever(server: Server, options, changed):
    assert server.ask(*options, "-c", SEEN, env=os.environ | changed).stdout.startswith("False")
    assert not changed or "has an environment of its own" in server.log.read_text()


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_who_asked_and_what_was_forked_end_together(server: Server, sent: signal.Signals, status: int):
    client, program = server.begin("-c", WAITS)
    client.send_signal(sent)
    assert client.wait(10) == status
    program.wait(10)
    client, program = server.begin("-c", WAITS)
    program.send_signal(sent)
    assert client.wait(10) == 128 + sent


def test_what_ends_a_group_ends_one_program(server: Server):
    """As Ray does behind a worker: the others, and what they were forked from, go on."""
    (first, one), (second, other) = (server.begin("-c", WAITS) for _ in range(2))
    assert os.getpgid(one.pid) == one.pid
    os.killpg(os.getpgid(one.pid), signal.SIGKILL)
    assert first.wait(timeout=20) == 128 + signal.SIGKILL
    assert other.is_running()
    assert server.ask("-c", SEEN).stdout.startswith("True")
    second.kill()
    second.wait()


def test_it_can_have_a_title_of_its_own_by_which_a_watchdog_knows_it(server: Server):
    _, program = server.begin("-c", "import setproctitle; setproctitle.setproctitle('VLLM::Own'); " + WAITS)
    assert program.cmdline()[0].strip() == "VLLM::Own"
    program.kill()


def test_imports_that_start_threads_are_refused_and_programs_begin_as_ever(tmp_path: Path):
    (tmp_path / "threaded.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()"
    )
    server = Server(tmp_path, "threaded", PYTHONPATH=str(tmp_path))
    for _ in range(2):
        assert server.ask("-c", SEEN, env=os.environ | {"PYTHONPATH": str(tmp_path)}).stdout.startswith("False")
    assert server.process.wait(10) == 1
    assert "imports have started threads" in server.log.read_text()


def test_without_its_server_a_program_goes_on(server: Server):
    client, program = server.begin("-c", WAITS)
    server.process.kill()
    server.process.wait()
    time.sleep(0.2)
    assert client.poll() is None
    assert program.is_running()
    assert server.ask("-c", SEEN).stdout.startswith("False")
    program.kill()
    assert client.wait(10) == 1


def test_what_a_program_spawns_is_forked_too(server: Server, tmp_path: Path):
    (tmp_path / "spawns.py").write_text(SPAWNS)
    assert server.ask(str(tmp_path / "spawns.py")).stdout == "True True 0\n"


@pytest.mark.parametrize(
    "runtime_env", [{"env_vars": {}}, {"env_vars": {"VERL_PLATFORM": "cpu"}, "py_executable": "own"}, None]
)
def test_elsewhere_ray_starts_its_workers_as_ever(runtime_env):
    ray_init = {"runtime_env": runtime_env}
    with warm_workers(ray_init) as same:
        assert same is ray_init


@pytest.mark.parametrize(
    ("modules", "said"), [(("colorsys",), ""), (("no_such_module",), "not forked, or not all: Mod")]
)
def test_a_server_that_ended_by_itself_is_spoken_of(tmp_path: Path, monkeypatch, capsys, modules, said):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(warm_workers_module, "MODULES", modules)
    with warm_workers({"runtime_env": {"env_vars": {"VERL_PLATFORM": "cpu"}}}) as ray_init:
        words = [*shlex.split(ray_init["runtime_env"]["py_executable"]), "-c", SEEN]
        while not (tmp_path / "warm").exists():
            time.sleep(0.01)
        found = [subprocess.run(words, text=True, capture_output=True, check=True).stdout for _ in range(2)]
        assert [each.split(" ")[0] for each in found] == ["False", str(not said)]
    assert (said in capsys.readouterr().out) if said else capsys.readouterr().out == ""


def test_torchs_openmp_is_found():
    assert Path(torchs_openmp()).is_file()
