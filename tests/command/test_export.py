"""`python -m verl_ext.student.export`, as it is typed."""

import os
import subprocess
import sys
from pathlib import Path

from fake_hub import TOKEN, content, held, serve_hub
from local_run import write_student
from lora_checkpoint import write_lora_checkpoint
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[2]


def test_the_export_command_pushes_model_and_adapter_with_their_cards(tmp_path, composed_config):
    """As it is typed: the head's adapter, too, which the module's own `main` once ran too early for."""
    base = write_student(tmp_path / "base")
    actor = tmp_path / "run" / "checkpoints" / "global_step_2" / "actor"
    write_lora_checkpoint(actor, base)
    config = OmegaConf.merge(composed_config, {"run_dir": str(tmp_path / "run"), "student": {"path": str(base)}})
    OmegaConf.save(config, tmp_path / "run" / "config.yaml", resolve=True)
    out = tmp_path / "out"
    with serve_hub() as hub:
        own = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
        command = [sys.executable, "-m", "verl_ext.student.export", str(actor), str(out), "--push", "team/capitals"]
        env = os.environ | own | {"PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "home")}
        ended = subprocess.run(command, env=env, text=True, capture_output=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-2:] == [
        f"{out}/student is at {hub.url}/team/capitals (private)",
        f"{out}/adapter is at {hub.url}/team/capitals-adapter (private)",
    ]
    for kind, name in (("student", "team/capitals"), ("adapter", "team/capitals-adapter")):
        assert held(hub, name) == content(out / kind)
        assert hub.private[name]
        assert b"verl-opd" in held(hub, name)["README.md"]
        assert (name, f"{'adapter_' if kind == 'adapter' else ''}model.safetensors") in hub.pointers
    assert TOKEN not in ended.stdout + ended.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
