"""A checkpoint as a folder that loads: whole, in the base's dtype, in place of an earlier one."""

import json
from pathlib import Path

import pytest
import torch
from transformers import Qwen3ForCausalLM

from verl_ext.demo.tiny_pair import build_model, train_tokenizer
from verl_ext.student import export
from verl_ext.student.export import export_checkpoint, link

SHAPE = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
SHAPE |= {"num_key_value_heads": 1, "head_dim": 32, "initializer_range": 0.1}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tokenizer = train_tokenizer(["good morning", "guten Morgen"], ["en", "de"], 300)
    build_model(tokenizer, SHAPE).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def checkpoint(tmp_path: Path, base: Path) -> Path:
    """As verl's FSDP engine writes one of a single rank; every weight of the final norm is 2."""
    model = Qwen3ForCausalLM.from_pretrained(base)
    torch.nn.init.constant_(model.model.norm.weight, 2.0)
    folder = tmp_path / "global_step_1"
    folder.mkdir()
    (folder / "fsdp_config.json").write_text(json.dumps({"world_size": 1}))
    torch.save(model.state_dict(), folder / "model_world_size_1_rank_0.pt")
    return folder


def final_norm(folder: Path) -> list[float]:
    return Qwen3ForCausalLM.from_pretrained(folder).model.norm.weight.unique().tolist()


def test_the_students_folder_replaces_the_link_of_a_run(tmp_path: Path, base: Path, checkpoint: Path) -> None:
    run = tmp_path / "run"
    (run / "older").mkdir(parents=True)
    link(run / "student", run / "older")
    assert (run / "student").readlink() == Path("older")
    export_checkpoint(checkpoint, str(base), run)
    assert final_norm(run / "student") == [2.0]
    assert sorted(path.name for path in run.iterdir()) == ["older", "student"]
    assert list((run / "older").iterdir()) == []


def test_an_export_that_fails_leaves_the_earlier_student(
    tmp_path: Path, base: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_checkpoint(checkpoint, str(base), tmp_path / "run")
    real = export.save_model

    def fill_the_disk(model: Qwen3ForCausalLM, base: str, out: Path) -> None:
        torch.nn.init.constant_(model.model.norm.weight, 3.0)
        real(model, base, out)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "save_model", fill_the_disk)
    with pytest.raises(OSError, match="No space left"):
        export_checkpoint(checkpoint, str(base), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["student"]
    assert final_norm(tmp_path / "run" / "student") == [2.0]
