"""What the checks of one command look at. Everything is read when the first check asks for it, and once."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from verl_ext.data.rows import check_rows
from verl_ext.run.models import load_tokenizer, render_chat
from verl_ext.run.settings import mapping_of
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.teachers import teacher_of_row, teachers_of

if TYPE_CHECKING:
    from verl_ext.trainer.run_tools import RunTools

Rows = Sequence[Mapping[str, Any]]
COLUMNS = ("prompt", "teacher_messages")


AGENT, SINGLE_TURN = "agent_name", "single_turn_agent"
"""verl's column of the loop that answers a row, and its loop of one turn."""


def has_loops(config: Any, rows: Rows) -> bool:
    """Whether tools, or another loop than verl's of one turn, are in the settings or the rows of a run."""
    agent, turns = config.actor_rollout_ref.rollout.agent, config.actor_rollout_ref.rollout.multi_turn
    named = any(row.get(AGENT) not in (None, SINGLE_TURN) for row in rows)
    given = (turns.function_tool_path, turns.tool_config_path, agent.agent_loop_config_path)
    return named or any(given) or agent.default_agent_loop != SINGLE_TURN


class PromptTokens(NamedTuple):
    """One rendered prompt."""

    length: int
    """Tokens."""
    greatest: int
    """Greatest token id; -1 of an empty prompt."""
    digest: int
    """The same for the same tokens."""


class Context:
    """Of any command: its models, its rows, its teachers."""

    def __init__(
        self,
        *,
        models: Callable[[], Mapping[str, str]],
        rows: Callable[[], Rows] = tuple,
        teachers: Callable[[], Mapping[str, TeacherConfig]] = dict,
        template_kwargs: Callable[[], Mapping[str, Any]] = dict,
        ranks_of_vllm: Mapping[str, int] | None = None,
        config: Any = None,
        required: Sequence[str] = (),
        rows_key: str = "data",
    ) -> None:
        """Each function is called once, by the check that needs it first, and may raise ValueError naming the key.

        Args:
            models: folder or hub name by key; the first is the student's, or that of the model that answers.
            rows: what is trained on, answered, scored or judged, each with COLUMNS.
            teachers: by name.
            template_kwargs: for the chat template.
            ranks_of_vllm: tensor-parallel ranks of vLLM in this process, by key.
            config: a trainer's whole configuration; None for the other commands.
            required: its keys that have no default.
            rows_key: the setting that names the rows' file.
        """
        self._models, self._rows, self._teachers, self._template_kwargs = models, rows, teachers, template_kwargs
        self.config, self.required, self.rows_key = config, required, rows_key
        self.ranks_of_vllm = ranks_of_vllm or {}
        self._tokenizers: dict[str, Any] = {}

    @cached_property
    def models(self) -> Mapping[str, str]:
        return self._models()

    @cached_property
    def rows(self) -> Rows:
        return self._rows()

    @cached_property
    def teachers(self) -> Mapping[str, TeacherConfig]:
        return self._teachers()

    @cached_property
    def template_kwargs(self) -> Mapping[str, Any]:
        return self._template_kwargs()

    @cached_property
    def heldout(self) -> Rows:
        """Of a training run."""
        return check_rows("data.val_files", self.config.data.val_files)

    @property
    def offline(self) -> bool:
        """The run's workers will not ask the hub for a model."""
        if self.config is None or "ray_kwargs" not in self.config:
            return False
        variables = OmegaConf.select(self.config, "ray_kwargs.ray_init.runtime_env.env_vars") or {}
        return str(variables.get("HF_HUB_OFFLINE")) == "1"

    @property
    def student(self) -> tuple[str, str]:
        """Key and path of the model whose tokenizer and chat template are used."""
        return next(iter(self.models.items()))

    def tokenizer(self, key: str, path: str) -> Any:
        """A model's tokenizer. ValueError naming `key` if there is none."""
        if path not in self._tokenizers:
            try:
                self._tokenizers[path] = load_tokenizer(path)
            except (OSError, ValueError) as error:
                first = str(error).strip().splitlines()[0]
                raise ValueError(
                    f"{key}={path}: no tokenizer can be read ({first}); give a folder with tokenizer.json"
                ) from None
        return self._tokenizers[path]

    @property
    def student_tokenizer(self) -> Any:
        return self.tokenizer(*self.student)

    def teacher_tokenizer(self, name: str) -> Any:
        """Of a teacher whose `model_path` is given; the student's where it is not: a server needs no files here."""
        path = self.teachers[name].model_path
        return self.student_tokenizer if path is None else self.tokenizer("teacher.model_path", path)

    def render(self, row: Mapping[str, Any], column: str) -> list[int]:
        """Token ids of a row's messages up to where the answer begins, by the student's template, as training does."""
        return render_chat(self.student_tokenizer, row[column], self.kwargs_of(row))

    def kwargs_of(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the chat template is given beside a row's messages: the tools, where its agent loop shows them."""
        if self.tools is None or not self.tools.shown(row):
            return self.template_kwargs
        return {**self.template_kwargs, "tools": self.tools.of(row)}

    def agent_of(self, row: Mapping[str, Any]) -> str:
        """The agent loop that answers a row of a training run."""
        return row.get(AGENT) or self.config.actor_rollout_ref.rollout.agent.default_agent_loop

    @cached_property
    def tools(self) -> "RunTools | None":
        """Of a training run that has some, or another agent loop than the single-turn one; reading them takes verl."""
        if self.config is None or not has_loops(self.config, [*self.rows, *self.heldout]):
            return None
        from verl_ext.trainer.run_tools import RunTools

        return RunTools(self.config)

    @cached_property
    def prompt_tokens(self) -> Mapping[str, Sequence[PromptTokens]]:
        """What every row's prompts take, by column."""
        found: dict[str, list[PromptTokens]] = {column: [] for column in COLUMNS}
        for number, row in enumerate(self.rows):
            for column in COLUMNS:
                try:
                    ids = self.render(row, column)
                except ValueError as error:
                    raise ValueError(f"{self.rows_key} row {number}, {column}: {error}") from None
                found[column].append(PromptTokens(len(ids), max(ids, default=-1), hash(tuple(ids))))
        return found

    def numbers_of(self, name: str) -> list[int]:
        """Numbers of the rows that a teacher scores."""
        return [number for number, row in enumerate(self.rows) if teacher_of_row(row, self.teachers) == name]


def context_of_run(config: DictConfig) -> Context:
    """Of on-policy training and the doctor."""
    return Context(
        models=lambda: {"student.path": config.student.path},
        rows=lambda: check_rows("data.train_files", config.data.train_files),
        teachers=lambda: teachers_of(config),
        template_kwargs=lambda: mapping_of(config.data.apply_chat_template_kwargs),
        config=config,
        required=("student.path", "data.train_files", "data.val_files"),
        rows_key="data.train_files",
    )
