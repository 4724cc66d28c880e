"""verl's real actor (FSDP2 engine on gloo) against hand-written steps: Tinker's, and ours from the student's logits.

The actor runs in processes of its own, since verl chooses its platform once; they run this very file.
"""

import contextlib
import functools
import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

LR, BETAS, EPS = 1e-3, (0.9, 0.95), 1e-8
STEPS = 2  # the second one sees both moments of Adam and a ratio other than 1
ROWS = [(3, "xxxx"), (5, "xx.xxx"), (2, "x"), (4, "xxx.x"), (6, "xxx"), (3, "....."), (2, "xxxxxx"), (4, "xx")]
"""Prompt tokens, and the response: `x` sampled, `.` masked (a tool's answer, an unscored sample)."""
TOP_K = 5
NO_TOKEN = -1e4
"""Nats, where the support has no entry (id -1): no mass, and no NaN."""
MICRO_BATCHES = {
    "one_row": {"ppo_micro_batch_size_per_gpu": 1},
    "four_rows": {"ppo_micro_batch_size_per_gpu": 4},
    "by_tokens": {"use_dynamic_bsz": True, "ppo_max_token_len_per_gpu": 16},
}
METHODS = {
    "tinker": {},
    "forward_kl": {"loss": "forward_kl", "top_k": TOP_K},
    "students_support": {"loss": "reverse_kl", "top_k": TOP_K, "support": "student", "tail_samples": True},
    "expected_baseline": {"baseline": "expected_reverse_kl", "top_k": TOP_K, "coef": 0.5},
}
SCENARIOS = [("tinker", micro) for micro in MICRO_BATCHES] + [(method, "four_rows") for method in METHODS][1:]


@dataclass(frozen=True)
class Row:
    prompt_T: torch.Tensor
    response_T: torch.Tensor
    mask_T: torch.Tensor
    rollout_T: torch.Tensor
    advantages_T: torch.Tensor
    top_ids_TK: torch.Tensor
    top_logprobs_TK: torch.Tensor
    teacher_T: torch.Tensor


def make_rows(vocabulary: int) -> list[Row]:
    draw = torch.Generator().manual_seed(0)
    rows = []
    for prompt, response in ROWS:
        length = len(response)
        teacher_TV = torch.randn(length, vocabulary, generator=draw).mul(3).log_softmax(-1)
        top_logprobs_TK, top_ids_TK = teacher_TV.topk(TOP_K)
        prompt_T, response_T = (torch.randint(vocabulary, (size,), generator=draw) for size in (prompt, length))
        response_T[0] = top_ids_TK[0, 1]  # a token of the support
        top_ids_TK[0, -1], top_logprobs_TK[0, -1] = -1, NO_TOKEN
        rows.append(
            Row(
                prompt_T=prompt_T,
                response_T=response_T,
                teacher_T=teacher_TV.gather(1, response_T[:, None])[:, 0],
                mask_T=torch.tensor([token == "x" for token in response]).long(),
                rollout_T=-5.5 - torch.rand(length, generator=draw),
                advantages_T=torch.randn(length, generator=draw),
                top_ids_TK=top_ids_TK.int() if "x" in response else torch.zeros_like(top_ids_TK).int(),
                top_logprobs_TK=top_logprobs_TK if "x" in response else torch.zeros_like(top_logprobs_TK),
            )
        )
    return rows


# --- the reference: plain torch, one row at a time ---


def response_logprobs(model: Any, row: Row) -> torch.Tensor:
    """(T, V) with gradient."""
    ids_T = torch.cat([row.prompt_T, row.response_T])
    return model(input_ids=ids_T[None]).logits[0, len(row.prompt_T) - 1 : -1].log_softmax(-1)


def with_rest(logprobs_TK: torch.Tensor) -> torch.Tensor:
    return torch.cat([logprobs_TK, torch.log1p(-logprobs_TK.exp().sum(-1, keepdim=True))], dim=-1)


def row_loss(model: Any, row: Row, method: str) -> torch.Tensor:
    keep = row.mask_T.bool()
    if not keep.any():
        return torch.zeros(())
    logprobs_TV = response_logprobs(model, row)[keep]
    if method != "tinker":
        ids_TK = row.top_ids_TK[keep].long()
        student_TK = logprobs_TV.gather(1, ids_TK.clamp_min(0)).masked_fill(ids_TK < 0, NO_TOKEN)
        student_TS = with_rest(student_TK)
        teacher_TS = with_rest(row.top_logprobs_TK[keep])
    if method == "forward_kl":
        return (teacher_TS.exp() * (teacher_TS - student_TS)).sum()
    advantages_T = row.advantages_T[keep]
    if method == "expected_baseline":
        expected_T = (student_TS.exp() * (student_TS - teacher_TS)).sum(-1)
        advantages_T = advantages_T + METHODS[method]["coef"] * expected_T.detach()
    chosen_T = logprobs_TV.gather(1, row.response_T[keep][:, None])[:, 0]
    if method == "students_support":
        tail_T = (student_TS - teacher_TS)[:, -1]
        charge_T = (chosen_T - row.teacher_T[keep] - tail_T).detach()
        charge_T[(ids_TK == row.response_T[keep][:, None]).any(-1)] = 0.0
        buckets = (student_TS.exp() * (student_TS - teacher_TS)).sum()
        return buckets + (torch.exp(chosen_T - row.rollout_T[keep]) * charge_T).sum()
    return -(torch.exp(chosen_T - row.rollout_T[keep]) * advantages_T).sum()


def reference(folder: Path, rows: list[Row], method: str) -> dict[str, torch.Tensor]:
    """The parameters after STEPS steps of Adam on the sum over the batch."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in model.parameters()]
    for step in range(1, STEPS + 1):
        model.zero_grad()
        sum((row_loss(model, row, method) for row in rows), torch.zeros(())).backward()
        for parameter, (m, v) in zip(model.parameters(), moments, strict=True):
            m.mul_(BETAS[0]).add_(parameter.grad, alpha=1 - BETAS[0])
            v.mul_(BETAS[1]).add_(parameter.grad**2, alpha=1 - BETAS[1])
            m_hat, v_hat = m / (1 - BETAS[0] ** step), v / (1 - BETAS[1] ** step)
            with torch.no_grad():
                parameter -= LR * m_hat / (v_hat.sqrt() + EPS)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


# --- the actor, in its own processes ---


def to_batch(rows: list[Row], request: dict[str, Any]) -> Any:
    """What `update_actor` gets out of TransferQueue, and what verl's trainer says beside it."""
    from verl.utils import tensordict_utils as tu

    fields = {
        "prompts": [row.prompt_T for row in rows],
        "responses": [row.response_T for row in rows],
        "input_ids": [torch.cat([row.prompt_T, row.response_T]) for row in rows],
        "position_ids": [torch.arange(len(row.prompt_T) + len(row.response_T)) for row in rows],
        "response_mask": [row.mask_T for row in rows],
        "loss_mask": [row.mask_T for row in rows],
        "old_log_probs": [row.rollout_T for row in rows],
        "advantages": [row.advantages_T for row in rows],
        "teacher_top_ids": [row.top_ids_TK for row in rows],
        "teacher_top_logprobs": [row.top_logprobs_TK for row in rows],
        "rollout_log_probs": [row.rollout_T for row in rows],
        "teacher_logprobs": [row.teacher_T for row in rows],
    }
    nested = {key: torch.nested.as_nested_tensor(value, layout=torch.jagged) for key, value in fields.items()}
    return tu.get_tensordict(nested, non_tensor_dict=request)


def run_scenario(method: str, micro: str, request: dict[str, Any], rank: int, ranks: int) -> None:
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.engine_workers import ActorRolloutRefWorker

    from verl_ext.trainer.config import MethodConfig
    from verl_ext.trainer.losses import loss_from_logits

    config = OmegaConf.load(request["config"])
    OmegaConf.update(config, "actor", MICRO_BATCHES[micro] | {"optim": {"total_training_steps": STEPS}}, merge=True)
    config.rollout.log_prob_use_dynamic_bsz = config.actor.use_dynamic_bsz
    config.rollout.log_prob_max_token_len_per_gpu = 1024
    worker = ActorRolloutRefWorker(config, role="actor")
    worker.init_model()
    settings = MethodConfig(**METHODS[method])
    if settings.needs_student_logits:
        actor = omega_conf_to_dataclass(config.actor)
        worker.set_loss_fn(functools.partial(loss_from_logits, config=actor, method=settings))
    rows = make_rows(request["vocabulary"])
    batch = to_batch(
        rows[rank * len(rows) // ranks : (rank + 1) * len(rows) // ranks],
        {
            "calculate_entropy": True,
            "distillation_use_topk": settings.needs_student_logits,
            "distillation_only": settings.is_direct and not settings.tail_samples,
            "global_batch_size": len(rows),
            "mini_batch_size": len(rows),
            "epochs": STEPS,
            "seed": 0,
            "dataloader_kwargs": {"shuffle": False},
            "temperature": 1.0,
        },
    )
    metrics = worker.update_actor(batch)["metrics"]
    full = {name: tensor.full_tensor() for name, tensor in worker.actor.engine.module.named_parameters()}
    if rank == 0:
        torch.save({"parameters": full, "metrics": dict(metrics)}, f"{request['out']}/{ranks}-{method}-{micro}.pt")


def child(request: dict[str, Any], rank: int, ranks: int) -> None:
    torch.set_num_threads(1)
    for method, micro in SCENARIOS:
        run_scenario(method, micro, request, rank, ranks)


# --- the tests ---


@pytest.fixture(scope="module")
def made(compose_run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    """The folder of the model and of what 1 and 2 ranks made of it; the rows."""
    from verl_ext.demo.tiny_pair import build_model, train_tokenizer

    folder = tmp_path_factory.mktemp("actor")
    tokenizer = train_tokenizer(["x"], ["y"], 300)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = build_model(tokenizer, shape | {"num_key_value_heads": 1, "head_dim": 16})
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    config = compose_run("platform=cpu", f"student.path={folder}/model", f"actor_rollout_ref.actor.optim.lr={LR}")
    OmegaConf.resolve(config)
    OmegaConf.save(config.actor_rollout_ref, folder / "actor.yaml")
    request = {"config": f"{folder}/actor.yaml", "out": str(folder), "vocabulary": len(tokenizer)}
    (folder / "request.json").write_text(json.dumps(request))
    with contextlib.ExitStack() as stack:
        groups = [(ranks, free_port()) for ranks in (1, 2)]
        children = [
            stack.enter_context(start(folder, rank, ranks, port)) for ranks, port in groups for rank in range(ranks)
        ]
        outputs = [process.communicate(timeout=240)[0] for process in children]
    for process, output in zip(children, outputs, strict=True):
        if process.returncode:
            pytest.fail(output[-4000:])
    return folder, make_rows(len(tokenizer))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(folder: Path, rank: int, ranks: int, port: int) -> subprocess.Popen[str]:
    environment = {"VERL_PLATFORM": "cpu", "VERL_ENGINE_DEVICE": "cuda", "CUDA_VISIBLE_DEVICES": "0"}
    environment |= {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", __file__, str(folder / "request.json"), str(rank), str(ranks)],
        env=os.environ | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(("method", "micro"), SCENARIOS)
def test_the_actors_step_is_the_hand_written_one(made, method: str, micro: str, ranks: int):
    folder, rows = made
    saved = torch.load(
        folder / f"{ranks}-{method}-{micro}.pt", weights_only=False
    )  # this test's own, numpy's numbers in it
    found = saved["parameters"]
    largest = max(float(parameter.abs().max()) for parameter in found.values())
    assert max(saved["metrics"]["weight_max"][-ranks:]) == pytest.approx(largest, abs=1e-5)
    assert len(saved["metrics"]["weight_max"]) == STEPS * ranks
    assert len(saved["metrics"]["grad_norm"]) == STEPS
    wanted = reference(folder / "model", rows, method)
    assert found.keys() == wanted.keys()
    for name, parameter in wanted.items():
        torch.testing.assert_close(found[name], parameter, atol=1e-5, rtol=0, msg=lambda text, name=name: name + text)


if __name__ == "__main__":
    child(json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2]), int(sys.argv[3]))
