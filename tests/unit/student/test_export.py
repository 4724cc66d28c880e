"""What leaves a checkpoint: folders that load, with the weights that were trained, and links to the newest ones."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from lora_checkpoint import ALPHA, RANK, write_checkpoint, write_lora_checkpoint
from omegaconf import OmegaConf
from peft import PeftModel
from safetensors.torch import load_file
from saved_checkpoints import publish_as_it_stands
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoModelForCausalLM, AutoTokenizer

from verl_ext.student import export
from verl_ext.student.model_card import MERGE
from verl_ext.trainer.checkpoint import LinkStudent

IDS = torch.tensor([[1, 20, 30, 40]])


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def loaded(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


class Run:
    """A run's folder, into which checkpoints are saved through verl's callback."""

    total_training_steps = 2

    def __init__(self, folder: Path, base: Path, config) -> None:
        self.folder = folder
        config = OmegaConf.merge(config, {"run_dir": str(folder), "student": {"path": str(base)}})
        OmegaConf.save(config, folder / "config.yaml", resolve=True)
        self.config = OmegaConf.load(folder / "config.yaml")
        self.callback = LinkStudent(self.config)

    def actor(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"global_step_{step}" / "actor"

    def saved(self, step: int) -> None:
        self.callback.on_save(trainer=self, global_step=step, checkpoint_dir=str(self.actor(step).parent))


@pytest.fixture
def run(tmp_path: Path, base: Path, composed_config) -> Run:
    return Run(tmp_path, base, composed_config)


def test_the_newest_whole_model_is_the_student(run, base):
    for step in (1, 2):
        shutil.copytree(base, run.actor(step) / "huggingface")
        run.saved(step)
        link = run.folder / "student"
        assert link.is_symlink()
        assert not link.readlink().is_absolute()  # a run's folder may be moved
        assert link.resolve() == (run.actor(step) / "huggingface").resolve()
        assert "library_name: transformers" in (link / "README.md").read_text()
    assert not (run.folder / "adapter").exists()


def test_an_adapter_leaves_with_each_checkpoint_and_the_merged_model_with_the_last(run, base):
    first = write_lora_checkpoint(run.actor(1), base)
    run.saved(1)
    assert not (run.folder / "student").exists()
    assert (run.folder / "adapter").resolve() == (run.actor(1) / "adapter").resolve()
    torch.testing.assert_close(logits(PeftModel.from_pretrained(loaded(base), run.folder / "adapter")), logits(first))
    last = write_lora_checkpoint(run.actor(2), base)
    run.saved(2)
    assert (run.folder / "adapter").resolve() == (run.actor(2) / "adapter").resolve()
    assert "library_name: peft" in (run.folder / "adapter" / "README.md").read_text()
    assert "library_name: transformers" in (run.folder / "student" / "README.md").read_text()
    torch.testing.assert_close(logits(loaded(run.folder / "student")), logits(last), atol=1e-4, rtol=0)


def test_an_adapter_says_what_it_was_trained_with(tmp_path, base):
    write_lora_checkpoint(tmp_path / "actor", base)
    export.export_adapter(tmp_path / "actor", str(base), tmp_path / "adapter")
    found = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (found["r"], found["lora_alpha"]) == (RANK, ALPHA)
    assert sorted(found["target_modules"]) == ["lm_head", "q_proj"]
    assert (found["base_model_name_or_path"], found["task_type"]) == (str(base), "CAUSAL_LM")
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {name.rsplit(".", 2)[1] for name in names} == {"lora_A", "lora_B"}
    assert not [name for name in names if "default" in name]


def test_a_student_is_saved_in_the_bases_precision_with_its_tokenizer(tmp_path, base):
    half = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "half")
    export.save_model(loaded(base), str(tmp_path / "half"), tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template


def test_any_checkpoint_of_whole_weights_can_be_exported_over_an_earlier_one(tmp_path, base, monkeypatch):
    model = loaded(base)
    model.model.norm.weight.data *= 2
    write_checkpoint(tmp_path / "actor", model.state_dict())
    out = tmp_path / "out"
    (out / "elsewhere").mkdir(parents=True)
    (out / "student").symlink_to("elsewhere")  # as a run links its newest checkpoint
    for _ in range(2):
        monkeypatch.setattr("sys.argv", ["export", str(tmp_path / "actor"), str(out), "--base", str(base)])
        export.main()
        assert not (out / "student").is_symlink()
        torch.testing.assert_close(logits(loaded(out / "student")), logits(model))
    assert sorted(path.name for path in out.iterdir()) == ["elsewhere", "student"]
    assert list((out / "elsewhere").iterdir()) == []


def test_an_export_that_fails_leaves_the_earlier_student(tmp_path, base, monkeypatch):
    model = loaded(base)
    write_checkpoint(tmp_path / "actor", model.state_dict())
    export.export_checkpoint(tmp_path / "actor", str(base), tmp_path / "out")
    save = export.save_model

    def fill_the_disk(model, base: str, out: Path) -> None:
        model.model.norm.weight.data *= 2
        save(model, base, out)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "save_model", fill_the_disk)
    with pytest.raises(OSError, match="No space left"):
        export.export_checkpoint(tmp_path / "actor", str(base), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["student"]
    torch.testing.assert_close(logits(loaded(tmp_path / "out" / "student")), logits(model))


def test_a_lora_checkpoint_is_exported_as_adapter_and_merged_model(tmp_path, base):
    adapted = write_lora_checkpoint(tmp_path / "actor", base)
    export.export_checkpoint(tmp_path / "actor", str(base), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["adapter", "student"]
    torch.testing.assert_close(logits(loaded(tmp_path / "out" / "student")), logits(adapted), atol=1e-4, rtol=0)


def test_what_is_no_checkpoint_or_not_all_of_one_is_said_in_one_line(tmp_path, base, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["export", str(tmp_path), str(tmp_path / "out"), "--base", str(base)])
    with pytest.raises(SystemExit, match="1"):
        export.main()
    fix = "give global_step_N, or its folder actor"
    assert capsys.readouterr().err == f"error: {tmp_path}: no checkpoint of verl's (no fsdp_config.json); {fix}\n"
    write_checkpoint(tmp_path / "actor", {})
    (tmp_path / "actor" / "fsdp_config.json").write_text('{"world_size": 2}')
    with pytest.raises(ValueError, match=r"model_world_size_2_rank_0\.pt is missing: run_dir must be a folder"):
        export.read_checkpoint(tmp_path / "actor")


def test_a_lora_run_that_was_stopped_while_it_exported_is_exported_at_the_next_start(run, base):
    run.config.trainer.default_local_dir = str(run.folder / "checkpoints")
    export.export_what_is_missing(run.config)  # no checkpoint yet
    assert not (run.folder / "student").exists()
    adapted = write_lora_checkpoint(run.actor(2), base)
    publish_as_it_stands(run.actor(2).parent)
    export.export_what_is_missing(run.config)
    merged = run.actor(2) / "merged"
    assert (run.folder / "student").resolve() == merged.resolve()
    torch.testing.assert_close(logits(loaded(run.folder / "student")), logits(adapted), atol=1e-4, rtol=0)
    before = merged.stat().st_ino
    export.export_what_is_missing(run.config)
    assert merged.stat().st_ino == before  # once is enough


def test_the_base_is_the_runs_and_no_other_model(run, base, monkeypatch, capsys):
    """Merged over the run's own student, the adapter would act twice."""
    adapted = write_lora_checkpoint(run.actor(2), base)
    run.config.trainer.default_local_dir = str(run.folder / "checkpoints")
    (run.folder / "config.yaml").write_text(OmegaConf.to_yaml(run.config))
    out = run.folder / "out"
    monkeypatch.setattr("sys.argv", ["export", str(run.actor(2)), str(out)])
    export.main()
    torch.testing.assert_close(logits(loaded(out / "student")), logits(adapted), atol=1e-4, rtol=0)
    monkeypatch.setattr("sys.argv", ["export", str(run.actor(2)), str(out), "--base", str(out / "student")])
    with pytest.raises(SystemExit, match="1"):
        export.main()
    said = capsys.readouterr().err
    assert f"error: --base {out}/student is not the model that was trained, {base}" in said
    moved = shutil.copytree(base, run.folder / "moved")
    assert export.base_of(run.actor(2), str(moved)) == str(moved)
    (run.folder / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"no config\.yaml above it names the model that was trained; give --base"):
        export.base_of(run.actor(2), "")


def test_the_cards_lines_merge_an_adapter_of_a_tied_head_right(tmp_path, base):
    """`merge_and_unload` alone would change the input embedding too."""
    adapted = write_lora_checkpoint(tmp_path / "actor", base)
    export.export_adapter(tmp_path / "actor", str(base), tmp_path / "adapter")
    code = "\n".join(
        line[4:] for line in MERGE.format(base=json.dumps(str(base))).splitlines() if line.startswith("    ")
    )
    there: dict = {}
    exec(code.replace('"."', repr(str(tmp_path / "adapter"))), there)
    torch.testing.assert_close(logits(there["merged"]), logits(adapted), atol=1e-4, rtol=0)
    naive = PeftModel.from_pretrained(loaded(base), tmp_path / "adapter").merge_and_unload()
    assert (logits(naive) - logits(adapted)).abs().max() > 1e-2


def test_shards_are_joined_and_replicas_are_not():
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        mesh = DeviceMesh("cpu", [0, 1])
        halves = torch.arange(12.0).reshape(3, 4).split(2, dim=1)
        shards = [DTensor.from_local(half, mesh, [Shard(1)], run_check=False) for half in halves]
        copies = [DTensor.from_local(torch.ones(2), mesh, [Replicate()], run_check=False) for _ in range(2)]
        assert export._whole(shards).tolist() == torch.arange(12.0).reshape(3, 4).tolist()
        assert export._whole(copies).tolist() == [1, 1]
    finally:
        torch.distributed.destroy_process_group()
