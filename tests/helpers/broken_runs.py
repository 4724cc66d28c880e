"""What can be wrong with a run: for each check of the list, how to break a good run and the line that says so."""

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

from fake_sglang import FakeSGLang
from fake_vllm import FakeVLLM
from model_pair import Pair
from saved_checkpoints import SHARD, save
from tiny_student import ROW

from verl_ext.run.models import load_tokenizer


def teacher(change: Callable[[Path], None]) -> Callable[[Pair], list[str]]:
    """The override that takes a changed copy of the student as teacher."""

    def override(pair: Pair) -> list[str]:
        change(folder := pair.copy("teacher"))
        return [f"teacher.model_path={folder}"]

    return override


def changed_config(**changes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def student(change: Callable[[Path], None]) -> Callable[[Pair], list[str]]:
    """The override that trains a changed copy of the student, taught by the student itself."""

    def override(pair: Pair) -> list[str]:
        change(folder := pair.copy("student"))
        return [f"student.path={folder}", f"teacher.model_path={pair.student}"]

    return override


def replaced_config(**content) -> Callable[[Path], None]:
    return lambda folder: (folder / "config.json").write_text(json.dumps(content)) and None


def composite(folder: Path) -> None:
    """The text model as the text part of one that sees pictures too."""
    text = json.loads((folder / "config.json").read_text()) | {"model_type": "qwen2_5_vl_text"}
    replaced_config(model_type="qwen2_5_vl", text_config=text)(folder)


def changed_tokenizer(folder: Path, **changes) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def other_eos(folder: Path) -> None:
    """As the tokenizer of SmolLM2 is after its conversion from GGUF."""
    changed_tokenizer(folder, eos_token="<|im_start|>")


def cut_off(folder: Path) -> None:
    """As after half a download."""
    file = folder / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def traversing(folder: Path) -> None:
    """Loaders open what the index names, beside the folder too."""
    (folder / "model.safetensors").rename(folder.parent / "x.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))


def broken_template(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text() + "{% if %}")


def no_eos(folder: Path) -> None:
    changed_tokenizer(folder, eos_token=None)


def swap_two_ids(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (folder / "tokenizer.json").write_text(json.dumps(content))


def other_template(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text() + "!")


def huge(pair: Pair) -> list[str]:
    folder = pair.copy("huge")
    header = json.dumps({"more": {"dtype": "U8", "shape": [1 << 40], "data_offsets": [0, 1 << 40]}}).encode()
    with (folder / "more.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        os.truncate(file.fileno(), 8 + len(header) + (1 << 40))  # sparse
    return [f"student.path={folder}", f"teacher.model_path={pair.student}"]


def without_template(pair: Pair) -> list[str]:
    folder = pair.copy("plain")
    (folder / "chat_template.jinja").unlink()
    return [f"student.path={folder}"]


IN_4_BITS = (
    *("actor_rollout_ref.model.lora.base=nf4", "actor_rollout_ref.model.lora_rank=8"),
    *("actor_rollout_ref.rollout.load_format=safetensors", "actor_rollout_ref.actor.checkpoint.save_lora_only=true"),
)
"""As update=qlora."""


def words(*overrides: str) -> Callable[[Pair], list[str]]:
    return lambda _: list(overrides)


def taught(*overrides: str, answer: str = "de") -> Callable[[Pair], list[str]]:
    """A quarter of a step is the teacher's answer to one question."""

    def override(pair: Pair) -> list[str]:
        messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": answer}]
        (file := pair.scratch / "taught.jsonl").write_text(json.dumps({"messages": messages}))
        return ["method.off_policy_share=0.25", f"method.off_policy_data={file}", *overrides]

    return override


def lost_role(pair: Pair) -> list[str]:
    """A template that knows two roles, as Qwen3's does."""
    folder = pair.copy("drops")
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("in messages", "in messages if message.role in ('system', 'user')"))
    hidden = [{"role": "developer", "content": "Answer in one word."}, *ROW["prompt"]]
    return [f"student.path={folder}", f"data.train_files={pair.write_rows(ROW, ROW | {'teacher_messages': hidden})}"]


def refused_role(pair: Pair) -> list[str]:
    """A template that raises, as Gemma 2's does, and held-out rows that nobody renders before the validation."""
    folder = pair.copy("raises")
    file = folder / "chat_template.jinja"
    file.write_text(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + file.read_text()
    )
    told = [{"role": "system", "content": "Answer."}, *ROW["prompt"]]
    return [f"student.path={folder}", f"data.val_files={pair.write_rows(ROW, ROW | {'prompt': told})}"]


def served(*, right_model: bool, **info: str) -> Callable[[Pair], list[str]]:
    """An external server whose tokenizer has other ids."""

    def override(pair: Pair) -> list[str]:
        fake = pair.serve(FakeSGLang(vocabulary=2, tokenize=lambda text: [0] * len(text)))
        fake.info |= info | ({"model_path": str(pair.student)} if right_model else {})
        return ["teacher.mode=external", f"teacher.urls=[{fake.url}]"]

    return override


def served_by_vllm(*more: str, right_model: bool = True) -> Callable[[Pair], list[str]]:
    """An external vLLM as it is started by default."""

    def override(pair: Pair) -> list[str]:
        tokenizer = load_tokenizer(str(pair.student))
        fake = FakeVLLM(vocabulary=2, tokenize=lambda text: tokenizer.encode(text, add_special_tokens=False))
        if right_model:
            fake.info["data"][0]["root"] = str(pair.student)
        pair.serve(fake)
        return ["teacher.engine=vllm", "teacher.mode=external", f"teacher.urls=[{fake.url}]", *more]

    return override


def begun_otherwise(pair: Pair) -> list[str]:
    """A folder that holds another run, which has a checkpoint."""
    run_dir = pair.scratch / "run"
    run_dir.mkdir()
    (run_dir / "origin.json").write_text("{}")
    save(run_dir / "checkpoints", 1, run_dir)
    return []


def torn(pair: Pair) -> list[str]:
    """One whose only checkpoint was cut off."""
    os.truncate(save(pair.scratch / "run" / "checkpoints", 1) / SHARD, 10)
    return []


def of_two_ranks(pair: Pair) -> list[str]:
    save(pair.scratch / "run" / "checkpoints", 1, ranks=2)
    return []


def at_work(pair: Pair) -> list[str]:
    """A folder in which another run, here this process, holds the lock as long as it lives."""
    run_dir = pair.scratch / "run"
    run_dir.mkdir()
    HELD.append((run_dir / ".lock").open("w"))
    fcntl.flock(HELD[-1], fcntl.LOCK_EX)
    HELD[-1].write('{"pid": 7, "host": "other"}')
    HELD[-1].flush()
    return []


HELD: list[IO[str]] = []
TOOL = Path(__file__).parents[2] / "examples/calculator.py"
AGENT, TURNS = "actor_rollout_ref.rollout.agent", "actor_rollout_ref.rollout.multi_turn"
TOOLS = (f"{AGENT}.default_agent_loop=tool_agent", f"{TURNS}.function_tool_path={TOOL}")


def unknown_tool(pair: Pair) -> list[str]:
    named = ROW | {"extra_info": {"index": 1, "tool_selection": ["abacus"]}}
    return [*TOOLS, f"data.train_files={pair.write_rows(named, named)}"]


NOBODY = ("teacher.mode=external", "teacher.urls=[http://127.0.0.1:9]", "teacher.request_timeout_s=5")
STUDENTS = ("method.loss=reverse_kl", "method.top_k=8", "method.support=student")
BROKEN = [
    (
        "secrets",
        words("+ray_kwargs.ray_init.runtime_env.env_vars.WANDB_API_KEY=abc"),
        r"env_vars\.WANDB_API_KEY is a secret, .*; leave it out, and export WANDB_API_KEY",
    ),
    (
        "secrets",
        words("teacher.mode=external", "teacher.urls=[http://me:pass@host:1]"),
        r"teacher\.urls holds a password",
    ),
    ("required settings", words("data.val_files=null"), r"data\.val_files is not set"),
    ("ranges", words("actor_rollout_ref.rollout.n=0"), r"actor_rollout_ref\.rollout\.n=0 must be a whole number >= 1"),
    ("ranges", words("data.train_batch_size=-1"), r"data\.train_batch_size=-1 must be a whole number >= 1"),
    ("ranges", words("actor_rollout_ref.actor.optim.lr=.nan"), r"optim\.lr=nan must be a number > 0, at most 1"),
    ("keys of the method", words("actor_rollout_ref.rollout.ignore_eos=true"), r"ignore_eos=true must be false \(else"),
    ("keys of the method", words("algorithm.adv_estimator=grpo"), r"adv_estimator=grpo must be reverse_kl"),
    (
        "keys of the method",
        words("actor_rollout_ref.actor.policy_loss.loss_mode=vanilla"),
        r"loss_mode=vanilla is not method\.policy_loss\.kind=importance_sampling: leave it out",
    ),
    (
        "sizes",
        words("actor_rollout_ref.rollout.max_model_len=163"),
        r"max_model_len=163 is less than data\.max_prompt_length=160 \+ data\.max_response_length=4; raise it to 164",
    ),
    (
        "sizes",
        words("actor_rollout_ref.actor.use_dynamic_bsz=true", "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=100"),
        r"actor\.ppo_max_token_len_per_gpu=100 is less than",
    ),
    (
        "sizes",
        words("actor_rollout_ref.rollout.tensor_model_parallel_size=2"),
        r"tensor_model_parallel_size.*=2 does not divide trainer\.nnodes=1 x trainer\.n_gpus_per_node=1",
    ),
    ("sizes", words("actor_rollout_ref.actor.ppo_mini_batch_size=64"), r"ppo_mini_batch_size=64 is more than data\.tr"),
    ("sizes", words("trainer.n_gpus_per_node=3"), r"data\.train_batch_size=32: a mini-batch .* the 3 ranks"),
    ("sizes", words("actor_rollout_ref.rollout.max_num_batched_tokens=8"), r"max_num_batched_tokens=8 is less than"),
    (
        "checkpoint",
        words("trainer.resume_mode=resume_path", "trainer.resume_from_path=/nowhere/global_step_3"),
        r"trainer\.resume_from_path=/nowhere/global_step_3: no checkpoint folder",
    ),
    ("loggers", words("trainer.logger=[console,wandbb]"), r"trainer\.logger=wandbb: expected some of console"),
    ("loggers", words("trainer.logger=[mlflow]"), r"trainer\.logger=mlflow: the package is not installed"),
    ("loggers", words("trainer.logger=wandb"), r"trainer\.logger=wandb: nobody is logged in.*WANDB_MODE=offline"),
    ("devices", words("trainer.n_gpus_per_node=2"), r"trainer\.n_gpus_per_node=2 is more than the 1 slots of this CPU"),
    ("devices", words("trainer.nnodes=2"), r"trainer\.nnodes=2: this run starts a Ray of its own.*address=auto"),
    ("devices", words("trainer.device=cuda"), r"trainer\.n_gpus_per_node=1: torch sees no GPU.*set platform=cpu"),
    ("teacher device", words("teacher.device=cuda"), r"teacher\.device=cuda.*no GPU.*set teacher\.device=cpu"),
    (
        "context length",
        words("data.max_response_length=100000", "actor_rollout_ref.rollout.max_model_len=null"),
        r"data\.max_prompt_length \+ data\.max_response_length=100160 tokens, and student\.path=.* takes \d+; lower",
    ),
    ("method", words("method.student_logprobs=old"), r"method\.student_logprobs=old.*set it to false"),
    ("report", words("report.alternatives=101"), r"report\.alternatives=101 must be in \[0, 100\]"),
    ("base teacher", words("teacher.mode=base"), r"teacher\.mode=base: the sampler keeps the base.*set update=lora"),
    (
        "base teacher",
        words(
            *("teacher.mode=base", "actor_rollout_ref.model.lora_rank=8"),
            "actor_rollout_ref.model.target_modules=[q_proj,lm_head]",
        ),
        r"target_modules=\['q_proj', 'lm_head'\]: with teacher\.mode=base .* leave it out",
    ),
    (
        "base teacher",
        words(
            *("teacher.mode=base", "actor_rollout_ref.model.lora_rank=8", "teacher.refresh_every=1"),
            *("replay.share=0.25", "method.policy_loss.kind=truncated_importance_sampling"),
        ),
        r"replay\.share=0\.25 with teacher\.refresh_every=1: .*moved on; leave one out",
    ),
    (
        "base teacher",
        words("teacher.mode=base", "actor_rollout_ref.model.lora_rank=8", "teacher.model_path=other"),
        r"teacher\.model_path=other: teacher\.mode=base is the student's own base.*leave it out",
    ),
    (
        "base teacher",
        words(
            *("teacher.mode=base", "actor_rollout_ref.model.lora_rank=8", "method.loss=forward_kl", "method.top_k=32"),
        ),
        r"method\.top_k=32: with teacher\.mode=base vLLM gives at most 20 a position",
    ),
    ("method", words(*STUDENTS, "method.tail=false"), r"method\.tail=false drops.*set it to true"),
    (
        "method",
        words(*STUDENTS, "method.support_tokens=2"),
        r"support_tokens=2 is less than method\.top_k=8: set at le",
    ),
    (
        "method",
        words("method.support=student"),
        r"method\.support=student with method\.top_k=0: set method\.top_k to 1",
    ),
    (
        "method",
        words("method.tail_samples=true"),
        r"tail_samples=true with method\.loss=policy_gradient .*set method\.l",
    ),
    (
        "support",
        words(*STUDENTS, "teacher.engine=vllm"),
        r"teacher\.engine=vllm: vLLM scores no tokens that it is given.*set teacher\.engine=sglang, or method\.supp",
    ),
    (
        "support",
        words(*STUDENTS, "method.top_k=32"),
        r"method\.top_k=32: with method\.support=student vLLM gives at most 20 a position; set \+\S+=32, or a smaller",
    ),
    (
        "support",
        words(*STUDENTS, "teacher.mode=base", "actor_rollout_ref.model.lora_rank=8"),
        r"teacher\.mode=base: vLLM scores no tokens that it is given.*set teacher\.mode=managed",
    ),
    (
        "update",
        words(*IN_4_BITS, "actor_rollout_ref.rollout.load_format=dummy"),
        r"load_format=dummy with actor_rollout_ref\.model\.lora\.base=nf4: set it to safetensors",
    ),
    (
        "update",
        words(*IN_4_BITS, "actor_rollout_ref.model.lora_rank=0"),
        r"lora_rank=0 with .*base=nf4: adapters are what is trained; set update=qlora",
    ),
    (
        "update",
        words(*IN_4_BITS, "actor_rollout_ref.model.target_modules=[q_proj,lm_head]"),
        r"target_modules=\['q_proj', 'lm_head'\] with .*base=nf4: the head stays as it is; leave lm_head out",
    ),
    (
        "update",
        words(*IN_4_BITS, "actor_rollout_ref.model.lora.base=int4"),
        r"lora\.base=int4: nf4 is what there is; set update=qlora",
    ),
    (
        "update",
        words("actor_rollout_ref.model.enable_activation_offload=true"),
        r"enable_activation_offload=true: verl pins memory.*set it to false",
    ),
    ("pipeline", words("pipeline.max_staleness=2"), r"pipeline\.max_staleness=2.*set that mode, or leave them out"),
    (
        "pipeline",
        words("pipeline.mode=stream", "pipeline.max_staleness=2"),
        r"pipeline\.max_staleness=2 with method\.policy_loss\.kind=importance_sampling.*=truncated_importance_sampling",
    ),
    (
        "pipeline",
        words("pipeline.placement=separate"),
        r"placement=separate with pipeline\.mode=sync.*set pipeline\.mode",
    ),
    (
        "pipeline",
        words("pipeline.mode=one_step_off", "pipeline.placement=separate"),
        r"placement=separate with actor_rollout_ref\.rollout\.nnodes=0.*set both to 1 or more",
    ),
    ("replay", words("replay.share=1"), r"replay\.share=1.* must be in \[0, 1\)"),
    (
        "replay",
        words("replay.share=0.5"),
        r"replay\.share=0\.5 with method\.policy_loss\.kind=importance_sampling.*=truncated_importance_sampling",
    ),
    (
        "off-policy share",
        words("method.off_policy_share=0.25"),
        r"method\.off_policy_share=0\.25 with method\.off_policy_data=''.*set both or neither",
    ),
    (
        "off-policy share",
        taught("algorithm.rollout_correction.bypass_mode=false"),
        r"off_policy_share=0\.25 with algorithm\.rollout_correction\.bypass_mode=false.*set it to true",
    ),
    (
        "off-policy share",
        taught("method.control=random_teacher"),
        r"method\.control=random_teacher shows .*off_policy_share=0\.25 trains on its answers: leave one out",
    ),
    (
        "off-policy share",
        taught("replay.share=0.75", "method.loss=forward_kl", "method.top_k=4"),
        r"off_policy_share=0\.25 and replay\.share=0\.75 leave an update of .* prompts without one.*lower one",
    ),
    ("off-policy share", taught("method.off_policy_share=0.01"), r"off_policy_share=0\.01 of .* less than one: raise"),
    (
        "off-policy share",
        taught("actor_rollout_ref.rollout.enable_rollout_routing_replay=true"),
        r"enable_rollout_routing_replay=true: .*no routed experts; set one to its default",
    ),
    (
        "off-policy answers",
        taught(answer=" de" * 400),
        r"row 0: its response has .* tokens, .*data\.max_response_length",
    ),
    (
        "Ray's token",
        words("ray_kwargs.ray_init.address=10.0.0.1:6379"),
        r"ray_kwargs\.ray_init\.address=10\.0\.0\.1:6379: (whoever reaches a Ray without a token|others may read)",
    ),
    (
        "teacher settings",
        words("teacher.extra_args=[--host,0.0.0.0]"),
        r"teacher\.extra_args: --host has a setting of its own; give teacher\.host",
    ),
    (
        "teacher settings",
        words("teacher.api_key_env=PATH"),
        r"teacher\.api_key_env=PATH is the name of another thing; give one that ends in KEY",
    ),
    ("teacher settings", words("teacher.tp=0"), r"teacher\.tp: 0 is below 1"),
    ("memory plan", words("hardware=cpu", "trainer.nnodes=2"), r"on CPU trainer\.nnodes=2, trainer"),
    ("sampling", words("actor_rollout_ref.rollout.temperature=0.7"), r"rollout\.temperature=0\.7.*set it to 1\.0"),
    ("sampling", words("actor_rollout_ref.rollout.top_p=0.9"), r"actor_rollout_ref\.rollout\.top_p=0\.9"),
    ("sampling", words("actor_rollout_ref.rollout.top_k=20"), r"actor_rollout_ref\.rollout\.top_k=20"),
    ("models", words("student.path=/nowhere/m"), r"student\.path=/nowhere/m: no such folder"),
    (
        "models",
        student(cut_off),
        r"student\.path: \S+/model\.safetensors has [\d,]+ bytes, and [\d,]+ by its header; d",
    ),
    ("models", student(pickled), r"student\.path=\S+ has its weights in pytorch_model\.bin, a pickle, which runs code"),
    (
        "models",
        student(traversing),
        r"model\.safetensors\.index\.json names \.\./x\.safetensors, which is not a file of",
    ),
    (
        "models",
        student(broken_template),
        r"student\.path: \S+/chat_template\.jinja is no Jinja template \(its line \d+:",
    ),
    ("data", words("data.train_files=none.parquet"), r"data\.train_files=none\.parquet: no such file"),
    (
        "checkpoint",
        torn,
        r"holds no whole checkpoint \(global_step_1: actor/model_world_size_1_rank_0\.pt has 10 b",
    ),
    ("checkpoint", of_two_ranks, r"trainer\.nnodes x n_gpus_per_node = 1: the checkpoint .* was written by 2 ranks"),
    ("run folder", at_work, r"another run works there \(process 7 on other\); wait until it ends, or take another"),
    (
        "run folder",
        begun_otherwise,
        r"begun with other settings: .* None there, .*; go on with those, take",
    ),
    ("held-out data", words("data.val_files=none.parquet"), r"data\.val_files=none\.parquet: no such file"),
    ("batch", words("data.train_max_samples=31"), r"data\.train_max_samples=31 leaves no batch"),
    ("labels", words("method.labels.label_set=[klingon]"), r"method\.labels\.label_set: the data also has en"),
    ("tools", words(TOOLS[0]), r"multi_turn\.function_tool_path and tool_config_path name no tool; give one"),
    ("tools", words(TOOLS[1]), r"no row is answered by a loop with tools; set .*default_agent_loop=tool_agent"),
    (
        "tools",
        words(f"{AGENT}.default_agent_loop=other"),
        r"data\.train_files row 0: there is no agent loop other; name",
    ),
    ("tools", words(TOOLS[0], f"{TURNS}.function_tool_path=none.py"), r"function_tool_path=none\.py: no such file"),
    ("tools", words(*TOOLS, f"{TURNS}.format=gpt"), r"multi_turn\.format=gpt: expected one of .*hermes"),
    ("tools", unknown_tool, r"row 0: extra_info\.tool_selection names abacus, and the tools are calculator"),
    (
        "tools",
        words(*TOOLS, "method.support=student", "method.loss=reverse_kl", "method.top_k=2"),
        r"method\.support takes answers of one turn, and tool_agent answers rows; set method\.support=teacher",
    ),
    ("tools in the prompt", words(*TOOLS), r"student\.path=.*: its chat template leaves out the tools"),
    (
        "batch",
        words("data.train_batch_size=33"),
        r"data\.train_batch_size=33 is larger than data\.train_files: 32 rows",
    ),
    (
        "teacher names",
        words("teachers.a.port=1", "teachers.b.port=2"),
        r"data\.train_files row 0: column teacher says None",
    ),
    ("free memory", huge, r"not enough memory.*smaller student\.path"),
    ("teacher model", words("teacher.model_path=/nowhere/m"), r"teacher\.model_path=/nowhere/m: no such folder"),
    ("teacher model", teacher(cut_off), r"teacher\.model_path: \S+/model\.safetensors has [\d,]+ bytes, and [\d,]+ by"),
    ("exposure", words("teacher.host=0.0.0.0"), r"teacher\.host=0\.0\.0\.0 lets other machines in"),
    ("interpreter", words("teacher.python=/nowhere/python"), r"teacher\.python=/nowhere/python.*make setup"),
    (
        "interpreter",
        words("teacher.engine=vllm", "teacher.python=/bin/false"),
        r"teacher\.python: /bin/false cannot tell its vLLM's version .* or give the python of one that has vLLM",
    ),
    (
        "teacher weights",
        teacher(changed_config(quantization_config={"quant_method": "fp8"})),
        r"teacher\.model_path: .* holds fp8 weights.*teacher\.device=cuda",
    ),
    ("server", words(*NOBODY), r"teacher\.urls: a server does not score: http://127\.0\.0\.1:9: ClientConnectorError"),
    ("student tokenizer", without_template, r"student\.path=.* has no chat template; add chat_template\.jinja"),
    (
        "text model",
        student(composite),
        r"student\.path=.* is a composite model \(model_type qwen2_5_vl, .*text models",
    ),
    ("student model", student(replaced_config(model_type="t5")), r"student\.path=.* is an encoder-decoder"),
    (
        "model type",
        student(changed_config(model_type="new")),
        r"student\.path=.*transformers knows no model_type 'new'",
    ),
    ("end of answer", student(other_eos), r"ends with '<\|im_start\|>' for its tokenizer, with '<\|im_end\|>' for the"),
    ("end of answer", student(no_eos), r"student\.path=.*: its tokenizer has no eos_token; name"),
    ("weight transfer", student(changed_config(vocab_size=1 << 50)), r"MiB of shared memory, .*--shm-size"),
    (
        "teacher context",
        teacher(changed_config(max_position_embeddings=12)),
        r"row 0: teacher_messages .*teacher\.model_path=.* reads 12 \(max_position_embeddings\): shorten the prompt",
    ),
    (
        "prompt lengths",
        words("data.max_prompt_length=3"),
        r"row 0: prompt has \d+ tokens.*raise data\.max_prompt_length=3",
    ),
    (
        "teacher context",
        words("teacher.context_length=20"),
        r"row 0: teacher_messages .*raise teacher\.context_length=20",
    ),
    (
        "roles",
        lost_role,
        r"data\.train_files row 1, teacher_messages: the chat template .* leaves out what the developer",
    ),
    (
        "roles",
        refused_role,
        r"data\.val_files row 1, prompt: the chat template refuses a conversation of system, user \(no",
    ),
    (
        "served model",
        served(right_model=False),
        r"http://\S+ serves /models/teacher, and teacher\.model_path=.*; give teacher\.model_path",
    ),
    (
        "served model",
        served(right_model=True, dtype="bfloat16"),
        r"teacher\.dtype=float32: http://\S+ serves in bfloat16, .*; set",
    ),
    (
        "served model",
        served_by_vllm(right_model=False),
        r"http://\S+ serves /models/teacher, and teacher\.model_path=.*; give teacher\.model_path",
    ),
    (
        "teacher engine",
        served_by_vllm("method.loss=forward_kl", "method.top_k=32"),
        r"method\.top_k=32: .*greater than max allowed: 20.*; start the server so .*--max-logprobs 32\), or lower",
    ),
    ("served tokenizer", served(right_model=True), r"makes other tokens than student\.path's of 17 of 17 texts"),
    (
        "teacher tokenizer",
        teacher(lambda folder: (folder / "tokenizer.json").unlink()),
        r"teacher\.model_path=.*: no tokenizer can be read",
    ),
    ("tokenizer", teacher(swap_two_ids), r"student\.path and teacher\.model_path have different tokenizers: 2 tokens"),
    ("chat template", teacher(other_template), r"row 0 prompt, line \d+: student .*; copy .* to teacher\.model_path"),
    (
        "vocabulary",
        teacher(changed_config(vocab_size=5)),
        r"teacher 5, .*; resize the embedding of teacher\.model_path",
    ),
]
