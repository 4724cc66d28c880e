"""The one list of checks: training refuses by it, the doctor shows it, the other commands take what concerns them.

In the order in which they are looked at: the cheap ones first, so that a wrong key is named before a model is read.
docs/doctor.md has the same table, with what to do.
"""

from verl_ext.checks import (
    architecture,
    base_teacher,
    data,
    engines,
    inputs,
    memory,
    off_policy,
    roles,
    served,
    sft,
    support,
    teacher_engine,
    tokens,
    tools,
    trust,
    update,
    values,
)
from verl_ext.checks.check import DOCTOR, EVALUATE, GENERATE, SCORE, SFT, TRAIN, Check, Cost

INSTANT, MODELS, ENGINES = Cost.INSTANT, Cost.READS_MODELS, Cost.NEEDS_ENGINES
RUN, ANSWERS = (TRAIN, DOCTOR), (GENERATE, SCORE, EVALUATE)
GIVEN, TEACHER, BOTH = ("required settings",), ("teacher settings",), ("student tokenizer", "teacher tokenizer")
RANGES = ("ranges",)
SET = (*GIVEN, *RANGES)
SERVED = ("server", "method")
ROUTED, ROLES = ("data", "teacher names"), ("data", "tools", "student tokenizer", "roles")

CHECKS = (
    # Settings
    Check("secrets", INSTANT, (*RUN, SFT), trust.secrets),
    Check("required settings", INSTANT, (*RUN, SFT), inputs.given),
    Check("ranges", INSTANT, RUN, values.training),
    Check("method", INSTANT, RUN, inputs.method, needs=RANGES),
    Check("pipeline", INSTANT, RUN, inputs.pipeline, needs=("method",)),
    Check("replay", INSTANT, RUN, inputs.replay, needs=("pipeline",)),
    Check("off-policy share", INSTANT, RUN, off_policy.share, needs=("replay",)),
    Check("report", INSTANT, RUN, inputs.report, needs=RANGES),
    Check("teacher settings", INSTANT, RUN, inputs.teacher_settings, needs=GIVEN),
    Check("base teacher", INSTANT, (*RUN, SCORE), base_teacher.base_teacher, needs=(*TEACHER, "method")),
    Check("support", INSTANT, RUN, support.support, needs=(*TEACHER, "method")),
    Check("update", INSTANT, RUN, update.update, needs=RANGES),
    Check("keys of the method", INSTANT, RUN, values.kept, needs=SET),
    Check("sampling", INSTANT, RUN, inputs.sampling),
    Check("sizes", INSTANT, RUN, values.sizes, needs=RANGES),
    Check("memory plan", INSTANT, RUN, memory.plan, needs=(*GIVEN, "method", *TEACHER, "sizes")),
    Check("checkpoint", INSTANT, RUN, inputs.checkpoint, needs=RANGES),
    Check("SFT ranges", INSTANT, (SFT,), values.supervised),
    Check("SFT settings", INSTANT, (SFT,), sft.settings),
    Check("LoRA", INSTANT, (SFT,), sft.lora),
    Check("resume", INSTANT, (SFT,), sft.resume),
    Check("loggers", INSTANT, (*RUN, SFT), values.loggers),
    # This machine
    Check("devices", INSTANT, RUN, values.devices, needs=(*TEACHER, *RANGES)),
    Check("Ray's token", INSTANT, RUN, values.ray_token),
    Check("processes", INSTANT, (SFT,), sft.processes),
    Check("vLLM", INSTANT, (GENERATE, EVALUATE), values.sampler),
    Check("teacher device", INSTANT, (*RUN, SCORE), values.teacher_device, TEACHER, each_teacher=True),
    # Models and rows
    Check("models", INSTANT, (*RUN, SFT, *ANSWERS), inputs.models, needs=SET),
    Check("remote code", INSTANT, (*RUN, SFT, SCORE), trust.remote_code),
    Check("data", INSTANT, (*RUN, *ANSWERS), inputs.rows, needs=GIVEN),
    Check("run folder", INSTANT, (*RUN, SFT), inputs.run_folder, needs=SET),
    Check("held-out data", INSTANT, RUN, inputs.heldout, needs=GIVEN),
    Check("labels", INSTANT, RUN, data.labels, needs=("data", "held-out data", "method")),
    Check("tools", INSTANT, (*RUN, *ANSWERS), tools.tools, needs=("data",)),
    Check("batch", INSTANT, RUN, inputs.batch, needs=("data", *RANGES)),
    Check("teacher names", INSTANT, RUN, inputs.routing, needs=("data", *TEACHER)),
    Check("free memory", INSTANT, RUN, memory.free_memory, needs=("models",)),
    # Each teacher: can it score?
    Check("teacher model", INSTANT, (*RUN, SCORE), inputs.teacher_model, TEACHER, each_teacher=True),
    Check("exposure", INSTANT, (*RUN, SCORE), inputs.exposure, TEACHER, each_teacher=True),
    Check("interpreter", INSTANT, (*RUN, SCORE), inputs.interpreter, TEACHER, each_teacher=True),
    Check("teacher weights", INSTANT, (*RUN, SCORE), inputs.quantized_weights, ("teacher model",), each_teacher=True),
    Check("server", MODELS, (*RUN, SCORE), inputs.server, TEACHER, each_teacher=True),
    # Student and teacher: the same tokens, and the prompts that they should see?
    Check("model type", MODELS, (*RUN, SFT, *ANSWERS), architecture.model_type, ("models",)),
    Check("text model", MODELS, (*RUN, SFT), architecture.text_alone, ("model type",)),
    Check("experts", MODELS, RUN, architecture.experts, ("text model", *RANGES)),
    Check("student tokenizer", MODELS, (*RUN, SFT, *ANSWERS), inputs.student_tokenizer, ("models",)),
    Check("end of answer", MODELS, (*RUN, SFT), architecture.end_of_answer, ("text model", "student tokenizer")),
    Check("special tokens", MODELS, (*RUN, *ANSWERS), data.special_tokens, ("data", "student tokenizer")),
    Check("roles", MODELS, (*RUN, GENERATE, SCORE), roles.roles, ("data", "student tokenizer")),
    Check("tools in the prompt", MODELS, RUN, tools.template, ("tools", "student tokenizer")),
    Check("prompt lengths", MODELS, RUN, inputs.prompt_lengths, (*ROLES, *RANGES)),
    Check("off-policy answers", MODELS, RUN, off_policy.answers, ("student tokenizer", "off-policy share")),
    Check("context length", MODELS, RUN, inputs.context_length, ("text model", "student tokenizer", *RANGES)),
    Check("served model", MODELS, (*RUN, SCORE), served.model, ("server",), each_teacher=True),
    Check("served tokenizer", MODELS, (*RUN, SCORE), served.tokenizer, ("server", *ROLES), each_teacher=True),
    Check("teacher tokenizer", MODELS, (*RUN, SCORE), inputs.teacher_tokenizer, ("teacher model",), each_teacher=True),
    Check("teacher context", MODELS, RUN, architecture.teacher_context, (*BOTH, *ROUTED, *RANGES), each_teacher=True),
    Check("teacher engine", MODELS, RUN, teacher_engine.teacher_engine, (*SERVED, *BOTH, *ROUTED), each_teacher=True),
    Check("tokenizer", MODELS, (*RUN, SCORE), tokens.tokenizers, BOTH, each_teacher=True),
    Check("chat template", MODELS, (*RUN, SCORE), tokens.templates, (*BOTH, *ROUTED), each_teacher=True),
    Check("think tokens", MODELS, (*RUN, SCORE), tokens.think_tokens, BOTH, each_teacher=True),
    Check("prompts", MODELS, RUN, tokens.prompts, (*BOTH, *ROUTED), each_teacher=True),
    # SFT: what is trained on
    Check("renderer", MODELS, (SFT,), sft.renderer, ("student tokenizer",)),
    Check("conversations", MODELS, (SFT,), sft.conversations, ("renderer",)),
    Check("asked as trained", MODELS, (SFT,), sft.template, ("renderer",)),
    Check("SFT batch", MODELS, (SFT,), sft.batch, ("conversations",)),
    Check("steps", MODELS, (SFT,), sft.steps, ("conversations",)),
    Check("held-out conversations", MODELS, (SFT,), sft.heldout, ("renderer",)),
    # What a configuration alone says, as transformers has it: from here on torch is imported
    Check("student model", MODELS, (*RUN, SFT), architecture.text_model, ("text model",)),
    Check("weight transfer", MODELS, RUN, architecture.weight_transfer, ("student model",)),
    Check("vocabulary", MODELS, (*RUN, SCORE), tokens.vocabulary, (*BOTH, *ROUTED), each_teacher=True),
    # Each teacher, running, with samples of the student
    Check("log-probs", ENGINES, (DOCTOR,), engines.against_transformers, each_teacher=True),
    Check("repeated scoring", ENGINES, (DOCTOR,), engines.repeated_scoring, each_teacher=True),
    Check("prefix cache", ENGINES, (DOCTOR,), engines.prefix_cache, each_teacher=True),
    Check("teacher = student", ENGINES, (DOCTOR,), engines.self_kl, each_teacher=True),
    Check("fingerprint", ENGINES, (DOCTOR,), engines.fingerprint, each_teacher=True),
    Check("speed", ENGINES, (DOCTOR,), engines.speed, each_teacher=True),
    Check("memory", ENGINES, (DOCTOR,), engines.memory_now, each_teacher=True),
    Check("precision", ENGINES, (DOCTOR,), engines.precision, each_teacher=True),
)


def checks_of(verb: str, *costs: Cost) -> list[Check]:
    """Those that concern a command, in order."""
    return [check for check in CHECKS if verb in check.verbs and check.cost in costs]


def checks_table() -> str:
    """The list as a table in Markdown."""
    rows = [f"| {check.name} | {check.cost.value} | {', '.join(check.verbs)} |" for check in CHECKS]
    return "\n".join(["| check | cost | commands |", "|---|---|---|", *rows])
