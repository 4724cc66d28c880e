"""Agent loops and tools: is there what the rows and the settings name, and does the model see it?"""

from verl_ext.checks.context import AGENT, SINGLE_TURN, Context
from verl_ext.run.models import chat_text
from verl_ext.run.settings import settings_of
from verl_ext.trainer.config import MethodConfig
from verl_ext.trainer.support_config import STUDENT

TURNS = "actor_rollout_ref.rollout.multi_turn"


def tools(context: Context) -> str:
    """Every row's agent loop is one that verl knows, and the tools that its prompts are to show are there."""
    if context.config is None:
        return _one_turn(context)
    found = context.tools
    if found is None:
        return "none: answers of one turn"
    shown = 0
    for key, rows in (("data.train_files", context.rows), ("data.val_files", context.heldout)):
        for number, row in enumerate(rows):
            try:
                if found.shown(row):
                    shown += bool(found.of(row))
            except ValueError as error:
                raise ValueError(f"{key} row {number}: {error}") from None
    _check_others(context)
    if found.given and not shown:
        raise ValueError(
            f"{TURNS}.function_tool_path, tool_config_path: no row is answered by a loop with tools; set "
            "actor_rollout_ref.rollout.agent.default_agent_loop=tool_agent, or leave the tools out"
        )
    return f"{shown} rows with tools: {', '.join(found.schemas)}" if shown else "no row with tools"


def _check_others(context: Context) -> None:
    """What of the method takes answers of one turn."""
    method = settings_of(context.config.method, MethodConfig)
    turns = [row for row in context.rows if context.agent_of(row) != SINGLE_TURN]
    for key, value, off in (
        ("support", method.support == STUDENT, "teacher"),
        ("off_policy_share", method.off_policy_share > 0, "0"),
    ):
        if value and turns:
            raise ValueError(
                f"method.{key} takes answers of one turn, and {context.agent_of(turns[0])} answers rows; set "
                f"method.{key}={off}, or agent.default_agent_loop={SINGLE_TURN}"
            )


def _one_turn(context: Context) -> str:
    """What generates, scores or judges answers takes one turn."""
    for number, row in enumerate(context.rows):
        if row.get(AGENT) not in (None, SINGLE_TURN):
            raise ValueError(
                f"{context.rows_key} row {number}: {AGENT} is {row[AGENT]}, and this command answers in one turn; take "
                "the row out, which a run's own validation judges (docs/tools.md)"
            )
    return "answers of one turn"


def template(context: Context) -> str:
    """The chat template shows the tools that it is given."""
    found = context.tools
    shown = [] if found is None else [row for row in context.rows if found.shown(row)]
    if not shown:
        return "no row with tools"
    key, path = context.student
    texts = [
        chat_text(context.student_tokenizer, shown[0]["prompt"], kwargs)
        for kwargs in (context.template_kwargs, context.kwargs_of(shown[0]))
    ]
    if texts[0] == texts[1]:
        raise ValueError(
            f"{key}={path}: its chat template leaves out the tools that it is given; give the model's folder a "
            "chat_template.jinja that shows them"
        )
    return f"{len(texts[1]) - len(texts[0])} characters of every prompt are about tools"
