"""Two Ray nodes on this machine: a LoRA run with a trainer rank and a vLLM on each, and what it leaves behind."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from verl_ext.run.metrics import read_metrics
from verl_ext.student.export import export_what_is_missing, read_checkpoint
from verl_ext.student.model_card import write_cards

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
NODE = ("--num-cpus=16", "--num-gpus=1", "--object-store-memory=268435456", "--disable-usage-stats", "--block")
SYNCED_NATS = 1e-3
MERGED_NATS = 1e-4  # one matrix product in place of three, fp32


def run(environment: dict[str, str], module: str, *words: str) -> str:
    """Output of one verb, which must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@contextlib.contextmanager
def ray_node(environment: dict[str, str], log: Path, *words: str) -> Iterator[None]:
    """A node that is up, for the length of a `with`; all its processes end with it."""
    ray = Path(sys.executable).with_name("ray")
    with log.open("w") as out:
        process = subprocess.Popen(
            [str(ray), "start", *words, *NODE], env=environment, stdout=out, stderr=out, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 120
        while "will now block forever" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield
    finally:
        process.terminate()  # `--block` takes its processes along
        process.wait(timeout=60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, teacher_python: str) -> Path:
    """Two steps; Ray asks for a token and the teacher, which listens on every address, for a key."""
    folder = tmp_path_factory.mktemp("nodes")
    secret = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "TEACHER_API_KEY": "key-of-these-tests",
    }
    environment = os.environ | secret | {"RAY_agent_register_timeout_ms": "300000"}
    run(environment, "recipe.create_data", "source=file", "sentences=data/sample.jsonl", f"out_dir={folder}/data")
    run(
        environment,
        "recipe.tiny_pair",
        f"data_dir={folder}/data",
        f"out_dir={folder}/base",
        "vocab_size=400",
        "steps=5",
    )
    address = f"127.0.0.1:{free_port()}"
    words = ["hardware=cpu_2_nodes", "task=demo", "update=lora", f"student.path={folder}/base", f"run_dir={folder}/run"]
    words += [f"ray_kwargs.ray_init.address={address}", f"teacher.python={teacher_python}", "teacher.host=0.0.0.0"]
    words += [f"data.train_files={folder}/data/train.parquet", f"data.val_files={folder}/data/heldout.parquet"]
    words += ["data.train_batch_size=8", "actor_rollout_ref.actor.optim.lr=5e-3", "trainer.total_training_steps=2"]
    head = ("--head", f"--port={address.partition(':')[2]}", "--include-dashboard=false")
    with (
        # Of its own, with a short name (sockets lie in it): every later `ray.init()` would look for this cluster else.
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as scratch,
        ray_node(environment, folder / "head.log", *head, f"--temp-dir={scratch}"),
        ray_node(environment, folder / "node.log", f"--address={address}"),
    ):
        run(environment, "recipe.on_policy_distillation", *words)
    return folder


def test_both_nodes_train_and_sample(trained: Path):
    """A node has one slot, so two ranks are two nodes; each vLLM got the adapters of each step."""
    rows = read_metrics(trained / "run/metrics.jsonl")
    assert [(row["step"], row["teacher/scored"]) for row in rows] == [(1, 32), (2, 32)]
    assert max(row["actor/rollout_gap_max"] for row in rows) < SYNCED_NATS
    shards = {file.name for file in (trained / "run/checkpoints/global_step_2/actor").glob("model_*")}
    assert shards == {f"model_world_size_2_rank_{rank}.pt" for rank in (0, 1)}


def test_adapter_and_merged_student_are_the_same_model_and_not_the_base(trained: Path):
    base = AutoModelForCausalLM.from_pretrained(trained / "base")
    ids = torch.arange(3, 40)[None]
    before = base(ids).logits.log_softmax(-1)
    adapted = PeftModel.from_pretrained(base, trained / "run/adapter")(ids).logits.log_softmax(-1)
    student = AutoModelForCausalLM.from_pretrained(trained / "run/student")
    assert student.config.tie_word_embeddings  # no adapter on the head, so nothing to untie
    torch.testing.assert_close(student(ids).logits.log_softmax(-1), adapted, atol=MERGED_NATS, rtol=0)
    assert (adapted - before).abs().max() > 100 * MERGED_NATS


def test_a_student_whose_export_was_cut_off_is_made_when_the_run_is_started_again(trained: Path):
    run, config = trained / "run", OmegaConf.load(trained / "run/config.yaml")
    assert isinstance(config, DictConfig)
    before = load_file(run / "student/model.safetensors")
    (run / "student").unlink()
    (run / "checkpoints/global_step_2/actor/adapter/adapter_model.safetensors").write_bytes(b"half")
    export_what_is_missing(config)
    write_cards(run)
    after = load_file(run / "student/model.safetensors")
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    shard = run / "checkpoints/global_step_2/actor/model_world_size_2_rank_1.pt"
    shard.rename(shard.with_suffix(".elsewhere"))
    with pytest.raises(ValueError, match=r"rank_1\.pt is missing: run_dir must be a folder that all nodes share"):
        read_checkpoint(shard.parent)
    shard.with_suffix(".elsewhere").rename(shard)


def test_both_carry_the_runs_card(trained: Path):
    for kind, library in (("student", "transformers"), ("adapter", "peft")):
        card = (trained / "run" / kind / "README.md").read_text()
        assert f"library_name: {library}" in card
        assert "| steps | 2 |" in card


def test_the_key_is_nowhere(trained: Path):
    texts = [
        file for file in (trained / "run").rglob("*") if file.suffix in (".yaml", ".jsonl", ".log", ".md", ".json")
    ]
    assert (trained / "run/teacher.log") in texts
    assert not [file for file in texts if "key-of-these-tests" in file.read_text(errors="replace")]
    assert json.loads((trained / "run/run.json").read_text())["steps"] == 2
