"""The teacher's own answers that steps train on (`method.off_policy_share`): can they?"""

from verl_ext.checks.context import Context
from verl_ext.trainer.config import check_method
from verl_ext.trainer.off_policy import check_off_policy
from verl_ext.trainer.pipeline_config import check_pipeline
from verl_ext.trainer.replay.config import check_replay


def share(context: Context) -> str:
    """Steps can train on the teacher's answers as method, pipeline and replay stand."""
    method = check_method(context.config)
    pipeline = check_pipeline(context.config, method)
    taught = check_off_policy(context.config, method, pipeline, check_replay(context.config, method, pipeline))
    return f"{taught} prompts a step are the teacher's" if taught else "off"


def answers(context: Context) -> str:
    """Every answer of the file is one that the student can be trained on whole."""
    config = context.config
    if not config.method.off_policy_share:
        return "off"
    from verl_ext.trainer.taught import read_answers  # which imports torch

    tokenizer, kwargs = context.student_tokenizer, context.template_kwargs
    return read_answers(config.method.off_policy_data, tokenizer, kwargs, config.data).said
