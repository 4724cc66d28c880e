"""Processes that begin with their imports done: forked from one that has imported torch, verl and vLLM.

    python -IS warm.py run SOCKET [-B] -c CODE ...     # in the place of `python [-B] -c CODE ...`
    python -IS warm.py run SOCKET SCRIPT ...           # in the place of `python SCRIPT ...`
    python warm.py serve SOCKET LIBRARY MODULE ...     # what they are forked from

A run on one machine has eight Python processes, each of which else imports for 4 to 9 seconds of a core what another
one has. `run` hands its arguments, environment and files over, and lives as long as the process that was forked for it,
with which it ends and which ends with it. Where nobody serves, or serves another environment, it is Python as ever.
So is the first one: `serve` takes its environment, in which modules and libraries are loaded as they would be there.
"""

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import sys
from types import ModuleType
from typing import Any

OPTIONS = ("-B",)
SOCKET = "VERL_OPD_WARM"
"""Environment variable of a process that was forked: where others are."""
MATTERS = ("PYTHONPATH", "PYTHONHOME", "PYTHONHASHSEED", "LD_", "OMP_", "MKL_", "KMP_", "GOMP_", "MALLOC_", "TORCH")
MATTERS += ("PYTORCH", "HF_", "TRANSFORMERS_", "VERL_PLATFORM", "VERL_ENGINE", "TRANSFER_QUEUE_", "VLLM_LOGGING")
"""Beginnings of variables that are read when a module or a library is loaded."""
OF_COMPILERS = ("TORCHINDUCTOR_CPP_DYNAMIC_THREADS", "TORCH_CUDA_ARCH_LIST")
"""What vLLM sets for its engine, which then compiles nothing (`sampler.py`)."""
PRELOAD = "LD_PRELOAD"
ALONE = {"OPENBLAS_NUM_THREADS": "1"}
"""NumPy would begin threads when it is imported; its users in a run need none."""
PR_SET_PDEATHSIG = 1
START_S = 120.0
"""For the imports. Who waits longer begins by itself."""
ASK_S = 10.0
"""For a request to arrive as a whole."""
HIGH = 512
"""File descriptors from here on are free for a while in a process that was just forked."""


def run(path: str, *arguments: str) -> None:
    """Never returns: exits as the process that was forked in its place, or becomes Python."""
    forked, server = b"", socket.socket(socket.AF_UNIX)
    numbers = [number for number in map(int, os.listdir("/proc/self/fd")) if is_open(number, server)]
    with contextlib.suppress(OSError, ValueError):
        server.connect(path)
        asked = {"arguments": plain([*arguments]), "environment": dict(os.environ), "folder": os.getcwd()}
        body = json.dumps(asked | {"numbers": numbers}).encode()
        socket.send_fds(server, [len(body).to_bytes(4, "big")], numbers)
        server.sendall(body)
        server.settimeout(START_S)
        forked = server.recv(16)
    if forked:
        follow(int(forked), server, numbers)
    os.execv(sys.executable, [sys.executable, *arguments])


def plain(arguments: list[str]) -> list[str]:
    """Without options that make no difference here. Raises ValueError where another one is given."""
    while arguments and arguments[0] in OPTIONS:
        arguments = arguments[1:]
    if not arguments or (arguments[0].startswith("-") and arguments[0] != "-c"):
        raise ValueError(arguments)
    return arguments


def is_open(number: int, server: socket.socket) -> bool:
    """Whether a descriptor is one that this process was given."""
    try:
        return number != server.fileno() and not fcntl.fcntl(number, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    except OSError:  # the one by which they were listed
        return False


def follow(pid: int, server: socket.socket, numbers: list[int]) -> None:
    """Wait for the end of a process, and end as it did; where nobody says how, with 1."""
    ended = None
    with contextlib.suppress(ProcessLookupError):
        ended = os.pidfd_open(pid)
    for number in numbers:  # so that who waits for their end sees it
        os.close(number)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
    server.settimeout(None)
    status = server.recv(16)
    if not status and ended is not None:
        select.select([ended], [], [])
    os._exit(int(status or 1))


def serve(path: str, library: str, *modules: str) -> None:
    """Wait for the first who asks, and begin again in its environment, as `fork`; end with who started this.

    `library`: loaded before all others, as for those who ask for it; "" for none.
    """
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.close(os.pidfd_open(os.getpid()))  # a kernel that knows none says so before anything is forked
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)  # who asks from now on waits for the imports
    while not (asked := request_of(listener)):
        pass
    for descriptor in asked["descriptors"]:
        os.close(descriptor)
    asked["client"].close()
    listener.set_inheritable(True)
    environment = asked["environment"]
    first = environment.get(PRELOAD, "")
    preloads = {PRELOAD: ":".join(filter(None, (first, library)))} if library else {}
    # No empty argument: what gives a process its title would not find the others.
    arguments = [sys.executable, __file__, "fork", str(listener.fileno()), f"{PRELOAD}={first}", *modules]
    os.execve(sys.executable, arguments, environment | preloads | ALONE)  # what is added goes behind the first


def fork(number: str, preload: str, *modules: str) -> None:
    """Import, and fork for everyone who asks. `preload`: LD_PRELOAD=..., as the first who asked had it."""
    import gc
    import importlib

    del sys.path[0]  # this file's folder
    begun = dict(os.environ)
    listener = socket.socket(fileno=int(number))
    listener.set_inheritable(False)
    for module in modules:
        importlib.import_module(module)
    if more := [name for name in other_threads() if name != "jemalloc_bg_thd"]:  # which knows that it was forked
        os.write(2, f"imports have started threads, which a fork would not have: {', '.join(more)}\n".encode())
        os._exit(1)  # which waits for none of them
    gc.collect()
    gc.freeze()
    set_by_imports = {name: value for name, value in os.environ.items() if begun.get(name) != value}
    path = listener.getsockname()
    preloads = {preload.partition("=")[2], begun.get(PRELOAD, "")}
    asked = Server(listener, decisive(begun | set_by_imports), set_by_imports, preloads).until_asked()
    listener.close()
    become(asked, asked["environment"] | set_by_imports | {SOCKET: path})


def other_threads() -> list[str]:
    """Names of this process' threads, its first one left out."""
    found = []
    for thread in os.listdir("/proc/self/task"):
        if int(thread) != os.getpid():
            with open(f"/proc/self/task/{thread}/comm") as file:
                found.append(file.read().strip())
    return found


class Server:
    """Forks; in the process that was forked, `until_asked` returns what it is to be."""

    def __init__(
        self, listener: socket.socket, environment: dict[str, str], by_imports: dict[str, str], preloads: set[str]
    ) -> None:
        """`environment`: as it matters, with what the imports have set. `preloads`: of LD_PRELOAD, either will do."""
        self.listener, self.environment, self.by_imports = listener, environment, by_imports
        self.preloads = preloads
        self.children: dict[int, tuple[int, socket.socket]] = {}
        """By the descriptor of a child's end: its process id, and who waits for it."""

    def until_asked(self) -> dict[str, Any]:
        while True:
            waiting = select.poll()  # with no descriptor of its own
            clients = {client.fileno(): end for end, (_, client) in self.children.items()}
            for number in (self.listener.fileno(), *self.children, *clients):
                waiting.register(number, select.POLLIN)
            number, _ = waiting.poll()[0]  # one alone: what it does may give another's number anew
            if number in self.children:
                self.report(number)
            elif number in clients:
                os.kill(self.children[clients[number]][0], signal.SIGKILL)  # who asked for it is gone
                self.report(clients[number])
            elif asked := self.fork():
                return asked

    def fork(self) -> dict[str, Any] | None:
        if (asked := request_of(self.listener)) is None:
            return None
        client, descriptors = asked["client"], asked["descriptors"]
        found = decisive(asked["environment"] | self.by_imports)
        if found == self.environment and asked["environment"].get(PRELOAD, "") in self.preloads:
            if not (pid := os.fork()):
                for end, (_, other) in self.children.items():
                    os.close(end)
                    other.close()
                client.close()
                os.setpgid(0, 0)  # of a worker that ends Ray ends the whole group
                return asked
            self.children[os.pidfd_open(pid)] = pid, client
            with contextlib.suppress(OSError):
                client.sendall(str(pid).encode())
        else:
            other = ", ".join(sorted({name for name, _ in found.items() ^ self.environment.items()})) or PRELOAD
            os.write(2, f"{asked['arguments'][:2]} has an environment of its own: {other}\n".encode())  # into a log
            client.close()
        for descriptor in descriptors:
            os.close(descriptor)
        return None

    def report(self, end: int) -> None:
        pid, client = self.children.pop(end)
        os.close(end)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with contextlib.suppress(OSError), client:
            client.sendall(str(code if code >= 0 else 128 - code).encode())


def request_of(listener: socket.socket) -> dict[str, Any] | None:
    """What a client asks for, who it is, and its descriptors; None where it is gone."""
    client, _ = listener.accept()
    client.settimeout(ASK_S)
    try:
        size, descriptors, _, _ = socket.recv_fds(client, 4, 250)
        body, wanted = b"", int.from_bytes(size, "big")
        while len(body) < wanted:
            more = client.recv(wanted - len(body))
            if not more:
                raise EOFError
            body += more
        client.settimeout(None)
        return json.loads(body) | {"client": client, "descriptors": descriptors}
    except (OSError, ValueError, EOFError):
        client.close()
        return None


def decisive(environment: dict[str, str]) -> dict[str, str]:
    own = (PRELOAD, *OF_COMPILERS)
    return {name: value for name, value in environment.items() if name.startswith(MATTERS) and name not in own}


def become(asked: dict[str, Any], environment: dict[str, str]) -> None:
    """Be the program that was asked for, in this forked process."""
    take(asked["descriptors"], asked["numbers"])
    # Not one by one anew: what gives a process its title looks for it before the first variable that it began with.
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update({name: value for name, value in environment.items() if os.environ.get(name) != value})
    os.chdir(asked["folder"])
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # Python's own does so by itself
    first, *others = asked["arguments"]
    sys.orig_argv = [sys.executable, first, *others]
    main = sys.modules["__main__"] = ModuleType("__main__")
    if first == "-c":
        code, *others = others
        sys.argv, sys.path[0:0] = ["-c", *others], [""]
        program = compile(code, "<string>", "exec")
    else:
        sys.argv, sys.path[0:0] = [first, *others], [os.path.dirname(os.path.abspath(first))]
        main.__file__ = first
        with open(first, "rb") as file:
            program = compile(file.read(), first, "exec")
    exec(program, main.__dict__)


def take(descriptors: list[int], numbers: list[int]) -> None:
    """Let the descriptors that were sent be open under the numbers that they had."""
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, HIGH) for descriptor in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)
    for descriptor, number in zip(high, numbers, strict=True):
        os.dup2(descriptor, number, inheritable=True)
        os.close(descriptor)


if __name__ == "__main__":
    {"run": run, "serve": serve, "fork": fork}[sys.argv[1]](*sys.argv[2:])
