"""The doctor with real engines: a healthy run passes, and each fault that can be made has its own message."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import ProxyHandler, Request, build_opener

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from verl_ext.checks.config import DoctorConfig
from verl_ext.checks.diagnose import diagnose
from verl_ext.checks.finding import FAIL, OK, WARN, Finding, failed
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.server.process import ManagedServer

torch.set_num_threads(1)
pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
TEMPLATE = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}{{ '[answer]' }}"


@pytest.fixture(scope="module")
def pair(tiny_qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A student with a template, and rows; the overrides that name them."""
    folder = tmp_path_factory.mktemp("doctor")
    student = folder / "student"
    shutil.copytree(tiny_qwen3, student)
    (student / "chat_template.jinja").write_text(TEMPLATE)
    rows = [
        {
            "prompt": [{"role": "user", "content": f"sentence {number}"}],
            "teacher_messages": [{"role": "user", "content": f"Name the language. Text: sentence {number}"}],
            "data_source": "language_id",
            "reward_model": {"style": "rule", "ground_truth": "en"},
        }
        for number in range(32)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    data = str(folder / "rows.parquet")
    return {"student.path": str(student), "data.train_files": data, "data.val_files": data}


@pytest.fixture(scope="module")
def changed(pair: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`changed(name)`: a copy of the student's folder to spoil."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(pair["student.path"], tmp_path_factory.mktemp("teachers") / name))

    return copy


@pytest.fixture(scope="module")
def noisy(changed: Callable[[str], Path]) -> Path:
    """The student's weights with 0.1 % noise in one norm."""
    folder = changed("noisy")
    weights = load_file(folder / "model.safetensors")
    norm = weights["model.norm.weight"]
    norm *= 1 + 1e-3 * torch.randn(norm.shape, generator=torch.Generator().manual_seed(0))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def noisy_server(noisy: Path, teacher_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    config = TeacherConfig(model_path=str(noisy), python=teacher_python, context_length=512)
    with ManagedServer(config, tmp_path_factory.mktemp("log") / "teacher.log") as server:
        yield server.wait_ready()


@pytest.fixture(scope="module")
def healthy(pair: dict[str, str], teacher_python: str, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """The verb as a user types it, its managed teacher being the student itself; writes the record."""
    out = tmp_path_factory.mktemp("healthy")
    overrides = [f"{key}={value}" for key, value in pair.items()]
    command = [sys.executable, "-m", "recipe.doctor", "platform=cpu", "task=demo", *overrides, "doctor.rows=4"]
    command += [f"teacher.python={teacher_python}", f"doctor.out={out}/doctor.json", f"doctor.record={out}/record.json"]
    environment = os.environ | {"COLUMNS": "150", "OMP_NUM_THREADS": "1", "TMPDIR": str(out)}
    return out, subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def run_doctor(compose_run, pair: dict[str, str], *overrides: str) -> dict[str, Finding]:
    """The findings by name, in this process; the student is sampled by transformers."""
    config = compose_run("platform=cpu", "task=demo", *(f"{key}={value}" for key, value in pair.items()), *overrides)
    OmegaConf.set_struct(config, False)
    schema = OmegaConf.structured(DoctorConfig)
    OmegaConf.set_readonly(schema, None)  # a frozen dataclass makes its node read-only
    config.doctor = OmegaConf.merge(schema, {"rows": 4, "sampler": "transformers", **config.get("doctor", {})})
    return {finding.name: finding for finding in diagnose(config)}


def test_a_healthy_run_passes_and_leaves_nothing_behind(healthy):
    out, done = healthy
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 failed" in done.stdout
    findings = {finding["name"]: finding for finding in json.loads((out / "doctor.json").read_text())["findings"]}
    # Its chat template writes no end token behind an answer.
    assert [name for name, finding in findings.items() if finding["verdict"] != OK] == ["end of answer"]
    assert findings["log-probs"]["numbers"]["straight"]["max"] < 1e-4
    assert findings["log-probs"]["numbers"]["shifted"]["mean"] > 0.1
    assert abs(findings["teacher = student"]["numbers"]["own_prompt"]["mean"]) < 1e-5
    assert findings["prefix cache"]["numbers"]["uncached_share"] == 0
    assert findings["prefix cache"]["numbers"]["cached_share"] > 0.3
    assert findings["prompts"]["numbers"]["teacher"].startswith("[user]Name the language.")
    assert {path.name for path in out.iterdir() if path.is_file()} == {"doctor.json", "record.json"}
    assert not list(out.glob("doctor-*"))
    assert not list(out.glob("teacher-*"))


def test_noise_in_one_norm_is_another_teacher(compose_run, pair, healthy, noisy, noisy_server):
    record = f"+doctor.record={healthy[0]}/record.json"
    served = ("teacher.mode=external", f"teacher.urls=[{noisy_server}]")
    by_hash = run_doctor(compose_run, pair, *served, f"teacher.model_path={noisy}", record)
    assert by_hash["fingerprint"].verdict == FAIL
    assert "another teacher: its files hash to" in by_hash["fingerprint"].seen
    assert by_hash["fingerprint"].numbers["greatest_nats"] > 1e-4
    assert [finding.name for finding in failed(list(by_hash.values()))] == ["fingerprint"]
    assert by_hash["teacher = student"].seen.startswith("skipped: other weights")

    assert (by_hash["served model"].verdict, by_hash["served tokenizer"].verdict) == (OK, OK)

    by_name = run_doctor(compose_run, pair, *served, record)
    assert [finding.name for finding in failed(list(by_name.values()))] == ["served model"]
    assert f"serves {noisy}, and teacher.model_path={pair['student.path']}" in by_name["served model"].seen

    # The files were replaced since the server read them: its log-probs give it away, three times.
    weights = noisy / "model.safetensors"
    noise = weights.read_bytes()
    try:
        shutil.copy(Path(pair["student.path"]) / weights.name, weights)
        by_probe = run_doctor(compose_run, pair, *served, record)
    finally:
        weights.write_bytes(noise)
    assert "its probe is off by up to" in by_probe["fingerprint"].seen
    assert {finding.name for finding in failed(list(by_probe.values()))} == {
        "fingerprint",
        "log-probs",
        "teacher = student",
    }


@pytest.fixture
def shifting_proxy(noisy_server: str) -> Iterator[str]:
    """A server in between that gives every token the log-prob of the one after it."""

    class Shift(BaseHTTPRequestHandler):
        def _forward(self, body: bytes | None) -> None:
            request = Request(noisy_server + self.path, body, {"Content-Type": "application/json"}, method=self.command)
            with build_opener(ProxyHandler({})).open(request, timeout=60) as response:
                content = response.read()
            if self.path == "/generate":
                answers = json.loads(content)
                for answer in answers:
                    entries = answer["meta_info"]["input_token_logprobs"]
                    values = [entry[0] for entry in entries[2:]] + [-1.0]
                    for entry, value in zip(entries[1:], values, strict=True):
                        entry[0] = value
                content = json.dumps(answers).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self) -> None:
            self._forward(self.rfile.read(int(self.headers.get("Content-Length", 0))))

        def do_GET(self) -> None:
            self._forward(None)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Shift)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_scoring_shifted_by_one_is_called_so(compose_run, pair, noisy, shifting_proxy):
    served = ("teacher.mode=external", f"teacher.urls=[{shifting_proxy}]", f"teacher.model_path={noisy}")
    finding = run_doctor(compose_run, pair, *served)["log-probs"]
    assert finding.verdict == FAIL
    assert finding.seen.startswith("looks shifted by one")


def test_faults_that_need_no_engine_start_none(compose_run, pair, changed, teacher_python):
    swapped = changed("swapped")
    content = json.loads((swapped / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (swapped / "tokenizer.json").write_text(json.dumps(content))

    template = changed("template")
    (template / "chat_template.jinja").write_text(TEMPLATE.replace("[answer]", "[reply]"))

    think = changed("think")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(think)
    tokenizer.add_tokens(["<think>"])
    tokenizer.save_pretrained(think)

    python = f"teacher.python={teacher_python}"
    cases = [
        ((f"teacher.model_path={swapped}",), "tokenizer", "2 tokens differ, first 'a'"),
        ((f"teacher.model_path={template}",), "chat template", "student '[answer]', teacher '[reply]'"),
        ((f"teacher.model_path={think}",), "tokenizer", "1 tokens differ, first '<think>'"),
        (("actor_rollout_ref.rollout.temperature=0.7",), "sampling", "temperature=0.7"),
    ]
    for overrides, name, message in cases:
        found = run_doctor(compose_run, pair, python, *overrides)
        assert found[name].verdict == FAIL, name
        assert message in found[name].seen
        assert found[name].fix
        assert found["engines"].seen.startswith("not started")
    found = run_doctor(compose_run, pair, python, f"teacher.model_path={think}")
    assert (found["think tokens"].verdict, found["think tokens"].seen) == (
        WARN,
        "<think> is one token for the teacher only",
    )
