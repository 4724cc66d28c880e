"""The planner's counts are transformers' and PEFT's, its bytes are worked out by hand, its refusals name the key."""

import dataclasses
import json
import re
import sys

import pytest
from rich.console import Console

from recipe.plan import main
from verl_ext.plan import memory
from verl_ext.plan.advice import single_changes
from verl_ext.plan.hardware import GIB, HardwareConfig, hardware_of
from verl_ext.plan.layout import overflows, pools, problems
from verl_ext.plan.report import draw, explain
from verl_ext.plan.run import Replay, Rollout, Run, Teacher, Trainer, changed, read_run
from verl_ext.plan.shape import published
from verl_ext.run.model_shape import PROJECTIONS, shape_from
from verl_ext.trainer.replay.buffer import PriorityBuffer
from verl_ext.trainer.replay.config import ReplayConfig

DENSE = {
    "model_type": "qwen3",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "tie_word_embeddings": True,
}
UNTIED = DENSE | {"tie_word_embeddings": False}
EXPERTS = {"model_type": "qwen3_moe", "moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2}
MODELS = {"tied": DENSE, "untied": UNTIED, "experts": UNTIED | EXPERTS}


def test_bytes_worked_out_by_hand():
    shape = shape_from(UNTIED | EXPERTS)
    assert memory.kv_bytes(shape, tp=1) == 2 * 3 * 2 * 16 * 2
    assert memory.kv_bytes(shape, tp=4) == 2 * 3 * 1 * 16 * 2  # two heads on four ranks: each holds one
    assert memory.stored_bytes(shape, 2, fp8=False) == 2 * shape.total
    assert memory.largest_tensor(shape) == 2 * 4 * 32 * 24
    # H=32, Q=64, K=32, I=48: 6H + 4(Q + K) + 4I fp32 numbers; LoRA: 4H + 3(Q + K) + 4I, and rank 8 x 7.
    dense = shape_from(DENSE)
    assert memory.layer_activations(dense, 4, lora_rank=0, modules=0) == 4 * (192 + 384 + 192)
    assert memory.layer_activations(dense, 4, lora_rank=8, modules=7) == 4 * (128 + 288 + 192 + 56)


TRAINER = Trainer(
    nodes=1,
    ranks_per_node=4,
    shards=4,
    weight_bytes=4,
    compute_bytes=2,
    tokens=8192,
    longest=2048,
    lora_rank=0,
    targets=PROJECTIONS,
    nf4=False,
    checkpointing=True,
    activation_offload=False,
    fused=True,
    entropy=True,
    compiled=True,
    param_offload=False,
    optimizer_offload=False,
)
ROLLOUT = Rollout(
    devices=0,
    tp=1,
    weight_bytes=2,
    memory_fraction=0.5,
    kv_cache_gib=0,
    max_sequences=256,
    max_batched_tokens=8192,
    max_model_len=2048,
    sleeps=True,
    bucket=2**30,
)
TEACHER = Teacher(
    path="Qwen/Qwen3-30B-A3B-Instruct-2507",
    mode="managed",
    fills_share=False,
    device="cuda",
    shares_device=False,
    tp=2,
    dp=2,
    weight_bytes=2,
    quantized=True,
    memory_fraction=0.8,
    max_total_tokens=65536,
)
RUN = Run(
    student_path="Qwen/Qwen3-4B-Instruct-2507",
    student=shape_from(published()["Qwen/Qwen3-4B-Instruct-2507"]),
    teacher_shape=shape_from(published()["Qwen/Qwen3-30B-A3B-Instruct-2507"]),
    device="cuda",
    sequences=128,
    trainer=TRAINER,
    rollout=ROLLOUT,
    teacher=TEACHER,
    replay=Replay(device="cpu", tokens=0, index=0),
)
NODE = HardwareConfig("8 x 80 GB", device_memory_gib=80, devices_per_node=8, nodes=1, host_memory_gib=512)
SHARED = dataclasses.replace(NODE, devices_per_node=1, teacher="shared")


def test_a_run_that_works_has_no_problem():
    assert problems(RUN, NODE) == []
    assert overflows(RUN, NODE) == []


def test_the_update_holds_weights_gradients_and_two_moments():
    update = memory.trainer_update(RUN)
    share = RUN.student.total * 4 // 4
    assert (update["weights"], update["gradients"], update["optimizer"]) == (share, share, 2 * share)
    lora = memory.trainer_update(changed(RUN, "trainer", lora_rank=32))
    assert lora["gradients"] == lora["adapters"] == 66_060_288 * 4 // 4
    assert lora["weights"] == share


def test_a_base_in_4_bits_is_whole_on_every_rank_and_is_unpacked_one_matrix_at_a_time():
    lora = changed(RUN, "trainer", lora_rank=32)
    qlora = changed(lora, "trainer", nf4=True)
    matrices = 36 * (2 * 2560 * 4096 + 2 * 2560 * 1024 + 3 * 2560 * 9728)  # of Qwen3-4B's layers
    assert (lora.in_4_bits, qlora.in_4_bits) == (0, matrices)
    rest = RUN.student.total - matrices
    assert memory.trainer_resident(qlora)["weights"] == rest * 4 // 4 + matrices * 9 // 16
    assert memory.unpacked(qlora) == 10 * 2560 * 9728
    assert memory.trainer_resident(qlora)["adapters"] == memory.trainer_resident(lora)["adapters"]
    attention = changed(qlora, "trainer", targets=("q_proj", "lm_head"))
    assert attention.in_4_bits == 36 * 2560 * 4096


def test_activations_wait_in_main_memory_where_that_is_asked_for_those_of_two_layers_apart():
    offload = changed(RUN, "trainer", activation_offload=True)
    stream = TRAINER.tokens * 2560 * 2
    assert memory.kept_activations(RUN) == (36 * stream, 0)
    assert memory.kept_activations(offload) == (2 * stream, 34 * stream)
    less = memory.trainer_update(RUN)["activations"] - memory.trainer_update(offload)["activations"]
    assert less == 34 * stream
    host, before = (pools(run, NODE)[-1].phases["update"] for run in (offload, RUN))
    assert host["activations"] == 34 * stream * TRAINER.ranks_per_node
    assert "activations" not in before


def test_logits_of_the_whole_micro_batch_or_of_a_chunk():
    vocab, tokens = RUN.student.vocab, TRAINER.tokens
    assert memory.logits(changed(RUN, "trainer", fused=False)) == 4 * tokens * vocab * 2
    assert memory.logits(changed(RUN, "trainer", fused=False, compiled=False)) == 7 * tokens * vocab * 2
    assert memory.logits(RUN) == 6 * 4 * 512 * vocab + 2 * 2 * vocab * 2560


def test_offloading_moves_bytes_to_main_memory_except_in_the_update():
    moved = changed(RUN, "trainer", optimizer_offload=True)
    device, _, host = pools(RUN, NODE)
    less, _, more = pools(moved, NODE)
    optimizer = device.phases["generate"]["optimizer"]
    assert device.total("generate") - less.total("generate") == optimizer
    assert more.total("generate") - host.total("generate") == 4 * optimizer  # of the node's four ranks
    assert device.phases["update"] == less.phases["update"]


@pytest.mark.parametrize(("top_k", "capacity"), [(0, 2**30), (4, 2**30), (-1, 2**22)])
def test_the_replay_buffer_takes_what_it_allocates(compose_run, tmp_path, top_k, capacity):
    """Of the real buffer, whose index is 3.6 to 4.6 bytes a token."""
    (tmp_path / "config.json").write_text(json.dumps(DENSE))
    words = [f"student.path={tmp_path}", "replay.share=0.25", f"replay.capacity_bytes={capacity}"]
    config = compose_run("platform=cpu", "task=demo", *words, "replay.capacity_tokens=5000", f"method.top_k={top_k}")
    planned = read_run(config).replay
    settings = ReplayConfig(share=0.25, capacity_tokens=5000, capacity_bytes=capacity)
    real = PriorityBuffer(settings, seed=0, top_k=DENSE["vocab_size"] if top_k < 0 else top_k)
    tokens = sum(held.nbytes for held in real.storage._token.values())
    index = real.storage.nbytes - tokens + real._tree.nbytes
    if capacity == 2**30:  # which does not bind
        assert planned.tokens == tokens
        assert 0.7 * planned.index < index < planned.index
    assert 0.95 * (tokens + index) < planned.tokens + planned.index <= capacity


def test_vllm_on_devices_of_its_own_leaves_the_trainers():
    apart = changed(changed(RUN, "rollout", devices=2, tp=2), "teacher", tp=1, dp=1)
    assert problems(apart, NODE) == []
    trainer, vllm, *_ = pools(apart, NODE)
    assert (trainer.name, trainer.count, vllm.name, vllm.count) == ("trainer", 4, "vLLM", 2)
    assert not [key for parts in trainer.phases.values() for key in parts if key.startswith("vLLM")]
    assert {vllm.total(phase) for phase in vllm.phases} == {sum(memory.rollout_awake(apart, 80 * GIB).values())}
    (line,) = [line for line in problems(changed(apart, "rollout", devices=4), NODE) if "more than" in line]
    assert "4 for the trainer, 4 for vLLM and 1 for the teacher" in line


def test_the_replay_buffer_lies_where_it_is_put():
    for device, places in (("cpu", (0, 0, 1005)), ("cuda", (1000, 0, 5))):
        buffered = dataclasses.replace(RUN, replay=Replay(device, tokens=1000, index=5))
        found = [pool.phases["update"].get("replay buffer", 0) for pool in pools(buffered, NODE)]
        assert tuple(found) == places
        assert {pool.phases["load"].get("replay buffer", 0) for pool in pools(buffered, NODE)} == set(places)


def test_an_adapter_is_merged_into_the_base_in_fp32_whatever_was_trained():
    half = changed(RUN, "trainer", weight_bytes=2)
    whole, lora = (
        pools(run, NODE)[-1].phases["save"]["whole model"] for run in (half, changed(half, "trainer", lora_rank=32))
    )
    assert (whole, lora) == (2 * RUN.student.total, 4 * RUN.student.total)


def test_the_base_as_its_own_teacher_takes_no_device_and_no_second_copy():
    """Scoring makes logits where vLLM is; a server of the same model would hold weights and a cache besides."""
    alone = changed(changed(RUN, "trainer", ranks_per_node=1, shards=1, lora_rank=32), "teacher", tp=1, dp=1)
    alone = dataclasses.replace(alone, teacher_shape=alone.student)
    for machine in (SHARED, NODE):
        served = changed(alone, "teacher", quantized=False, shares_device=machine is SHARED)
        own = changed(served, "teacher", mode="base", shares_device=False)
        assert problems(own, machine) == []
        assert [pool.name for pool in pools(own, machine)] == ["trainer + vLLM + teacher", "main memory"]
        assert {pool.phases["update"].get("teacher weights", 0) for pool in pools(own, machine)} == {0}
        taken = [
            sum(pool.phases["score"].get("teacher weights", 0) for pool in pools(run, machine)) for run in (served, own)
        ]
        assert taken == [2 * RUN.student.total, 0]


def test_unified_memory_is_counted_once():
    unified = dataclasses.replace(SHARED, unified_memory=True)
    alone = changed(changed(RUN, "trainer", ranks_per_node=1, shards=1), "teacher", mode="external", tp=1, dp=1)
    (together,) = pools(alone, unified)
    device, host = pools(alone, SHARED)
    assert together.total("load") == device.total("load") + host.total("load")


@pytest.mark.parametrize(
    ("run", "hardware", "reason"),
    [
        (RUN, dataclasses.replace(NODE, fp8=False), "teacher.quantization=fp8: .* does not multiply FP8"),
        (dataclasses.replace(RUN, sequences=126), NODE, "data.train_batch_size: 126 samples .* not divide among 4"),
        (
            changed(RUN, "rollout", devices=4),
            dataclasses.replace(NODE, teacher="elsewhere", devices_per_node=4),
            "4 for vLLM",
        ),
        (changed(RUN, "teacher", dp=4), NODE, "4 for the trainer and 8 for the teacher are more than .* 8 devices"),
        (changed(RUN, "trainer", ranks_per_node=16), NODE, "trainer.n_gpus_per_node=16: .* 1 nodes of 8"),
        (changed(RUN, "trainer", shards=3), NODE, "fsdp_size=3 does not divide"),
        (changed(RUN, "rollout", tp=8), NODE, "tensor_model_parallel_size=8 does not divide 4 ranks"),
        (changed(RUN, "teacher", tp=3, dp=1), NODE, "teacher.tp=3 does not divide the teacher's 32 heads"),
        (changed(RUN, "rollout", max_model_len=1024), NODE, "max_model_len=1024 is below"),
        (RUN, SHARED, "teacher.share_device=false: .* set teacher.share_device=true"),
        (changed(RUN, "teacher", shares_device=True), NODE, "teacher.share_device=true: .* teacher.share_device=false"),
        (changed(RUN, "teacher", device="cpu"), NODE, "teacher.device=cpu with trainer.device=cuda"),
        (changed(RUN, "rollout", memory_fraction=0.1), NODE, "gpu_memory_utilization=0.1: leaves"),
        (changed(RUN, "teacher", memory_fraction=0.1), NODE, "teacher.mem_fraction_static=0.1: leaves"),
        (dataclasses.replace(RUN, student=shape_from(UNTIED)), NODE, "use_fused_kernels=true: .* set it to false"),
        (changed(RUN, "trainer", lora_rank=8, targets=("lm_head",)), NODE, "target_modules: .* lm_head"),
    ],
)
def test_what_cannot_run_is_refused_with_its_reason(run, hardware, reason):
    assert any(re.search(reason, line) for line in problems(run, hardware)), problems(run, hardware)


def test_a_single_change_makes_it_fit_when_replanned():
    large = changed(changed(RUN, "trainer", fused=False, compiled=False), "rollout", memory_fraction=0.9)
    assert overflows(large, NODE)
    changes = single_changes(large, NODE)
    assert "actor_rollout_ref.rollout.gpu_memory_utilization=0.8" in [change.overrides for change in changes]
    assert all(not overflows(change.run, NODE) for change in changes)


def test_the_report_says_what_does_not_fit_and_draws_it(tmp_path):
    console = Console(record=True, width=200)
    small = dataclasses.replace(NODE, device_memory_gib=24)
    assert explain(RUN, NODE, console)
    assert not explain(RUN, small, console)
    text = console.export_text()
    assert "does not work: trainer + vLLM: generate takes" in text
    assert "teacher weights" in text
    draw(pools(RUN, NODE), "title", tmp_path / "plan.svg")
    assert (tmp_path / "plan.svg").read_text().count("<svg") == 1


def test_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["plan", "memory", "--cfg", "job", "picture=a.svg", "student.path=x"])
    main()
    assert "\npicture: a.svg\n" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["plan", "hardware=cpu"])
    with pytest.raises(SystemExit, match="error: expected the word memory"):
        main()


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"device_memory_gib": 0}, "device_memory_gib"),
        ({"nodes": 0}, "nodes"),
        ({"reserve_gib": 100}, "reserve_gib"),
        ({"teacher": "moon"}, "teacher"),
        ({"unified_memory": True}, "devices_per_node"),
        ({"typo": 1}, "typo"),
    ],
)
def test_a_bad_machine_names_its_key(change, key):
    with pytest.raises(ValueError, match=f"hardware.*{key}"):
        hardware_of(dataclasses.asdict(NODE) | change)


def test_no_machine_is_an_error():
    with pytest.raises(ValueError, match="hardware=NAME"):
        hardware_of(None)
    assert NODE.capacity == 79 * GIB
