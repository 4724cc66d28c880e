"""verl 0.9.1's reward workers, which run code that comes with a student; ours do where that was allowed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from seams import parameters
from tiny_student import write_student
from verl.experimental.reward_loop import RewardLoopWorker as theirs
from verl.experimental.reward_loop import reward_loop
from verl.utils import hf_tokenizer

from verl_ext.trainer.reward_workers import RewardLoopWorker as ours

CODE = """
from pathlib import Path
from transformers import PreTrainedTokenizerFast
Path({mark!r}).touch()
class Own(PreTrainedTokenizerFast):
    pass
"""


IN_A_RUN = """
import verl_ext.trainer.trainer  # as the process does that makes verl's manager
from verl.experimental.reward_loop import reward_loop
assert reward_loop.RewardLoopWorker.__module__ == "verl_ext.trainer.reward_workers"
"""


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """Whose tokenizer asks for a class of its own, the import of which leaves the file `ran`."""
    folder = tmp_path / "student"
    write_student(folder)
    (folder / "own.py").write_text(CODE.format(mark=str(tmp_path / "ran")))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_a_reward_worker_runs_no_code_of_the_student(student: Path):
    ran = student.parent / "ran"
    start(ours, student, allowed=False)
    assert not ran.exists()
    start(ours, student, allowed=True)
    assert ran.exists()


def test_verls_still_does(student: Path, monkeypatch: pytest.MonkeyPatch):
    """Where not, `verl_ext/trainer/reward_workers.py` has nothing left to do."""
    monkeypatch.setattr(reward_loop, "hf_tokenizer", hf_tokenizer)
    start(theirs, student, allowed=False)
    assert (student.parent / "ran").exists()


def test_verls_manager_starts_ours():
    subprocess.run([sys.executable, "-c", IN_A_RUN], check=True)
    assert "ray.remote(RewardLoopWorker)" in Path(reward_loop.__file__).read_text()
    assert parameters(ours._init_reward_fn) == parameters(theirs._init_reward_fn)


def start(kind: type, student: Path, *, allowed: bool) -> None:
    model = {"path": str(student), "tokenizer_path": None, "trust_remote_code": allowed}
    reward = {
        "reward_model": {"enable": False},
        "custom_reward_function": {"path": None},
        "reward_manager": {"source": "register", "name": "naive"},
    }
    kind(OmegaConf.create({"actor_rollout_ref": {"model": model}, "reward": reward}))
