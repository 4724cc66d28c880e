"""What a model's configuration says of it: can it be trained here, where does an answer end, how much can it read?

The functions of a Context are the checks of `verl_ext.checks.registry`.
"""

import shutil

from omegaconf import OmegaConf

from verl_ext.checks.context import Context
from verl_ext.checks.finding import WARN, Finding
from verl_ext.run.model_files import own_words
from verl_ext.run.models import chat_text, context_length, end_tokens, may_know, read_config
from verl_ext.teacher.config import BASE

KEPT_BACK = 7
"""Tokens of its context length that SGLang grants no request (below `max_req_input_len`, managers/tp_worker.py).
vLLM: 1."""
ANSWER = "answer"
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
OF_EXPERTS = ("gate_proj", "up_proj", "down_proj")
FP32_BYTES = 4
SHARED_MEMORY = "/dev/shm"


def model_type(context: Context) -> str:
    """What the folders' config.json say themselves: models that transformers knows. Nothing imports torch."""
    kinds = []
    for key, path in context.models.items():
        kind = own_words(key, path).get("model_type")
        if kind is not None and not may_know(str(kind)):
            raise ValueError(
                f"{key}={path}: transformers knows no model_type {kind!r} (config.json); give a model that it knows"
            )
        kinds.append(str(kind or "known once it is loaded"))
    return ", ".join(dict.fromkeys(kinds))


def text_alone(context: Context) -> str:
    """What the student's config.json says itself: no text part beside others. Nothing imports torch."""
    key, path = context.student
    content = own_words(key, path)
    if isinstance(text := content.get("text_config"), dict):
        raise _composite(key, path, str(content.get("model_type")), str(text.get("model_type")))
    return "no parts" if content else "known once it is loaded"


def experts(context: Context) -> str:
    """Adapters are on layers that PEFT and vLLM take for the same ones; on experts they are not."""
    key, path = context.student
    words, model = own_words(key, path), context.config.actor_rollout_ref.model
    if not any(words.get(name) for name in EXPERTS):
        return "none"
    named = model.target_modules
    adapted = [named] if isinstance(named, str) else [name for name in named if name in OF_EXPERTS]
    if not model.lora_rank or OmegaConf.select(model, "lora.merge"):
        return "without adapters"
    if context.config.trainer.device == "cpu":
        raise ValueError(
            f"actor_rollout_ref.model.lora_rank={model.lora_rank}: {key}={path} has experts, and vLLM's build for CPUs "
            "samples none of them under an adapter; set update=full, or train it on a GPU"
        )
    if not adapted:
        return "not adapted"
    raise ValueError(
        f"actor_rollout_ref.model.target_modules={named}: {key}={path} has experts, whose adapters vLLM does not "
        "take as PEFT makes them; set it to [q_proj,k_proj,v_proj,o_proj]"
    )


def _composite(key: str, path: str, whole: str, part: str) -> ValueError:
    return ValueError(
        f"{key}={path} is a composite model (model_type {whole}, its text part {part}): text models alone are trained "
        "here; give one of those"
    )


def text_model(context: Context) -> str:
    """The student is one decoder of text: what else a model has, the trainers do not know."""
    key, path = context.student
    config = read_config(key, path)
    text = config.get_text_config()
    if text is not config:
        raise _composite(key, path, config.model_type, text.model_type)
    if config.is_encoder_decoder:
        raise ValueError(f"{key}={path} is an encoder-decoder (model_type {config.model_type}); give a decoder")
    return str(config.model_type)


def weight_transfer(context: Context) -> str:
    """Without a GPU every rank hands its weights to vLLM through shared memory, which containers have little of."""
    config, (key, path) = context.config, context.student
    if config.trainer.device != "cpu":
        return "not through shared memory"
    model = read_config(key, path).get_text_config()
    needed = model.vocab_size * model.hidden_size * FP32_BYTES * config.trainer.n_gpus_per_node
    free = shutil.disk_usage(SHARED_MEMORY).free
    if needed > free:
        raise ValueError(
            f"{key}={path}: its embedding needs {needed >> 20} MiB of shared memory, {SHARED_MEMORY} has {free >> 20} "
            "free; give the machine more (docker: --shm-size), or take a smaller model"
        )
    return f"{needed >> 20} MiB of {SHARED_MEMORY}"


def end_of_answer(context: Context) -> Finding | str:
    """Tokenizer, model and chat template end an answer alike: it is sampled, trained on and served up to there."""
    key, path = context.student
    tokenizer, file = context.student_tokenizer, "tokenizer_config.json"
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{key}={path}: its tokenizer has no eos_token; name what ends an answer in its {file}")
    known = end_tokens(key, path)
    if known and tokenizer.eos_token_id not in known:
        names = ", ".join(repr(tokenizer.convert_ids_to_tokens(token)) for token in sorted(known))
        raise ValueError(
            f"{key}={path}: an answer ends with {tokenizer.eos_token!r} for its tokenizer, with {names} for the model "
            f"(eos_token_id of its configuration); set eos_token in its {file} to what the model says"
        )
    closing = _template_end(context)
    if closing not in known | {tokenizer.eos_token_id}:
        named = "no token" if closing is None else repr(tokenizer.convert_ids_to_tokens(closing))
        seen = f"the chat template ends an answer with {named}, sampling with {tokenizer.eos_token!r}"
        return Finding(WARN, seen, f"a chat model ends with its template's: set eos_token in its {file}")
    return f"answers end with {tokenizer.eos_token!r}"


def _template_end(context: Context) -> int | None:
    """The token that the chat template puts behind an answer."""
    tokenizer, (key, path) = context.student_tokenizer, context.student
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": ANSWER}]
    try:
        text = chat_text(tokenizer, messages, context.template_kwargs, answered=True)
    except ValueError as error:
        raise ValueError(f"{key}={path}: {error}") from None
    behind = tokenizer(text.rpartition(ANSWER)[2], add_special_tokens=False).input_ids
    return behind[0] if behind else None


def teacher_context(context: Context, name: str) -> str:
    """Every teacher's prompt with a full response fits what the teacher can read: else it is never scored."""
    teacher, answer = context.teachers[name], context.config.data.max_response_length + KEPT_BACK
    limit, reason = teacher.context_length, f"raise teacher.context_length={teacher.context_length}"
    if teacher.mode == BASE:  # vLLM reads it, and samples a token that nobody asked for
        limit = context.config.actor_rollout_ref.rollout.max_model_len
        answer = context.config.data.max_response_length + 1
        reason = f"raise actor_rollout_ref.rollout.max_model_len={limit}, in which teacher.mode=base scores"
    own, path = None, teacher.model_path
    if path is not None:  # else the server has the model
        own = context_length("teacher.model_path", path, trust_remote_code=teacher.trust_remote_code)
    if own is not None and (limit is None or own < limit):
        limit, reason = (
            own,
            (
                f"teacher.model_path={path} reads {own} (max_position_embeddings): shorten the prompt, or lower "
                "data.max_response_length"
            ),
        )
    for number in context.numbers_of(name):
        length = context.prompt_tokens["teacher_messages"][number].length
        if limit is not None and length + answer > limit:
            raise ValueError(f"row {number}: teacher_messages has {length} tokens (+{answer} of response); {reason}")
    return f"{limit} tokens"
