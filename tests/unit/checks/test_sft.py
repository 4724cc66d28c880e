import json

import pytest
from hydra import compose, initialize_config_dir
from saved_checkpoints import save
from tiny_student import write_student

from verl_ext.checks.run import check_sft


@pytest.fixture(scope="module")
def compose_sft(pytestconfig, tmp_path_factory):
    """Compose a run on a tiny student and 16 rows: `compose_sft("optim.lr=1", ...)`."""
    from verl_ext.checks.schemas import prepare_training_configs

    prepare_training_configs()
    folder = tmp_path_factory.mktemp("sft")
    write_student(folder / "base")
    row = {"messages": [{"role": "user", "content": "Good morning"}, {"role": "assistant", "content": "en"}]}
    (folder / "rows.jsonl").write_text((json.dumps(row) + "\n") * 16)
    small = ["platform=cpu", "task=demo", "data.train_batch_size=8", "data.micro_batch_size_per_gpu=4"]
    own = [f"student.path={folder}/base", f"data.train_files={folder}/rows.jsonl", f"run_dir={folder}/run"]

    def run(*overrides: str):
        with initialize_config_dir(str(pytestconfig.rootpath / "configs" / "sft"), version_base=None):
            return compose("sft", [*small, *own, *overrides])

    return run


def test_a_good_run_passes_and_is_counted(compose_sft):
    report, warnings = check_sft(compose_sft(), ranks=2)
    assert warnings == []
    assert (report.rows, report.truncated, report.trained_tokens) == (16, 0, 32)


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("optim.lr=0", r"optim\.lr=0 must be a number > 0"),
        ("optim.clip_grad=0.0", r"optim\.clip_grad=0\.0 must be a number > 0"),
        ("optim.lr_scheduler_type=step", r"optim\.lr_scheduler_type=step must be one of"),
        ("optim.lr_warmup_steps=8", r"optim\.lr_warmup_steps=8 leaves none"),
        ("trainer.save_freq=0", r"trainer\.save_freq=0 must be a whole number >= 1 or -1"),
        ("trainer.test_freq=0", r"trainer\.test_freq=0 must be a whole number >= 1 or -1"),
        ("trainer.total_epochs=0", r"trainer\.total_epochs=0"),
        ("trainer.total_training_steps=9", r"trainer\.total_training_steps=9: 4 epochs have 8 steps"),
        ("optim.lr_warmup_steps_ratio=1", r"optim\.lr_warmup_steps=8 leaves none of 8"),
        ("engine.ulysses_sequence_parallel_size=4", r"ulysses_sequence_parallel_size=4 does not divide the 2 proc"),
        ("trainer.logger=[tensorboad]", r"trainer\.logger=tensorboad: expected some of console, tensorboard"),
        ("data.max_length=-1", r"data\.max_length=-1 must be a whole number >= 2"),
        ("data.train_batch_size=32", r"data\.train_batch_size=32 must be from 1 to the 16 rows"),
        ("data.train_batch_size=7", r"data\.train_batch_size=7 must be a multiple of the 2 data-parallel ranks"),
        ("data.micro_batch_size_per_gpu=3", r"data\.micro_batch_size_per_gpu=3 must divide the 4 rows"),
        ("data.max_length=5", r"line 1: no token is left to train on"),
        ("model.lora_rank=-1", r"model\.lora_rank=-1 must be a whole number >= 0"),
        ("model.lora_alpha=0", r"model\.lora_alpha=0 must be a number > 0"),
        ("model.lora.rank=8", r"model\.lora\.rank=8 is Megatron's"),
        ("engine.strategy=fsdp", r"engine\.strategy=fsdp must be fsdp2"),
        ("sft.seed=-1", r"sft\.seed=-1"),
        ("sft.adapter_dtype=bf16", r"sft\.adapter_dtype=bf16 must be one of"),
        ("sft.renderer=qwen3_5", r"sft\.renderer=qwen3_5: not one that is exact"),
        ("student.path=/nowhere/model", r"student\.path=/nowhere/model: no such folder"),
    ],
)
def test_a_run_that_cannot_work_is_refused_in_one_line(compose_sft, override, wanted):
    with pytest.raises(ValueError, match=wanted) as refused:
        check_sft(compose_sft(override), ranks=2)
    assert "\n" not in str(refused.value)


def test_a_row_longer_than_a_micro_batch_is_refused(compose_sft):
    config = compose_sft("data.use_dynamic_bsz=true", "data.max_token_len_per_gpu=8")
    with pytest.raises(ValueError, match=r"data\.max_token_len_per_gpu=8 is less than the longest row"):
        check_sft(config, ranks=1)


def test_a_validation_set_without_a_full_batch_is_refused(compose_sft):
    """verl's validation loss would be the mean of nothing."""
    config = compose_sft("data.val_max_samples=7")
    config.data.val_files = config.data.train_files
    with pytest.raises(ValueError, match="verl's validation loss would be NaN"):
        check_sft(config, ranks=1)


def test_a_checkpoint_of_other_ranks_is_refused(compose_sft, tmp_path):
    save(tmp_path, 2, ranks=4)
    with pytest.raises(ValueError, match=r"--nproc = 2: .* was written by 4 ranks; take as many"):
        check_sft(compose_sft(f"trainer.default_local_dir={tmp_path}"), ranks=2)
    check_sft(compose_sft(f"trainer.default_local_dir={tmp_path}", "trainer.resume_mode=disable"), ranks=2)
