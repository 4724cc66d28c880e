"""What a report is made of: sections of blocks. HTML and Markdown are two ways to write the same blocks.

A figure cannot be made without its sentence: the words are fields of the block, and have no default.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Paragraph:
    """Words. The first of a report is its answer."""

    text: str
    lead: bool = False


@dataclass(frozen=True)
class Missing:
    """A part that cannot be shown."""

    what: str
    """The file or numbers that are not there."""
    keep: str
    """Which command or setting makes them."""


@dataclass(frozen=True)
class Fact:
    """One large number."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Facts:
    """The few numbers that one looks for first."""

    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class Table:
    """Rows of text; the first cell of a row names it."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    texts: int = 1
    """Columns from the left that hold words, >= 1; the others hold numbers and stand to the right."""
    folded: bool = False
    """Shown only where it is opened."""


@dataclass(frozen=True)
class Code:
    """Lines to copy."""

    caption: str
    text: str


@dataclass(frozen=True)
class Series:
    """One line of a chart; `x` and `y` finite, (N,), `x` ascending."""

    name: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    """Lower edge of its band, (N,)."""
    high: np.ndarray | None = None
    colour: int = 0
    """Number of a colour, >= 0; -1: grey."""
    key: str = ""
    """Lines of one key, in all charts of a page, are made to stand out together."""


@dataclass(frozen=True)
class Chart:
    """Lines over one axis."""

    title: str
    unit: str
    """Of y, with its denominator."""
    x_label: str
    series: tuple[Series, ...]
    sentence: str
    """What it shows, in words."""
    note: str = ""
    """What was left out of it; "" for nothing."""
    wide: bool = False
    log_x: bool = False
    legend: bool = True
    """Whether its lines are named above it."""
    y_range: tuple[float, float] | None = None
    target: tuple[float, str] | None = None
    """A level that is drawn across, and its name."""


@dataclass(frozen=True)
class Legend:
    """The names of the lines of the charts that follow: name, colour, key."""

    names: tuple[tuple[str, int, str], ...]


@dataclass(frozen=True)
class Span:
    """A stretch of time in a lane."""

    start: float
    end: float
    kind: str


@dataclass(frozen=True)
class Lanes:
    """Who was busy when (a Gantt chart)."""

    title: str
    lanes: tuple[tuple[str, tuple[Span, ...]], ...]
    """Name and spans, seconds since the left edge, of each."""
    marks: tuple[tuple[float, str], ...]
    """Where a step begins, and its name."""
    seconds: float
    """Of the whole width, > 0."""
    sentence: str


@dataclass(frozen=True)
class Estimate:
    """A value with its interval, as a row."""

    name: str
    value: float
    low: float
    high: float
    cells: tuple[str, ...]
    colour: int = 0


@dataclass(frozen=True)
class Estimates:
    """Shares with their intervals, drawn from 0 to 1 beside their numbers."""

    caption: str
    columns: tuple[str, ...]
    """Of the cells behind name, picture and value."""
    rows: tuple[Estimate, ...]
    sentence: str


@dataclass(frozen=True)
class Confusion:
    """How often each right answer (a row) was answered how (a column)."""

    title: str
    gold: tuple[str, ...]
    answered: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    sentence: str


@dataclass(frozen=True)
class Said:
    """An answer, at one or more steps in a row."""

    when: str
    text: str
    """Clipped already; `left_out` says by how much."""
    left_out: int
    score: float | None
    finish: str


@dataclass(frozen=True)
class Conversation:
    """One held-out prompt and what was answered over the steps."""

    row: str
    prompt: str
    prompt_left_out: int
    truth: str | None
    said: tuple[Said, ...]


@dataclass(frozen=True)
class Answers:
    """The same prompts over the steps."""

    conversations: tuple[Conversation, ...]
    opened: int = 3
    """How many are shown without being asked."""


@dataclass(frozen=True)
class Token:
    """One token of an answer; log-probs in nats, None where unknown."""

    text: str
    student: float | None
    teacher: float | None
    kind: str
    """Its class (`verl_ext.report.answers.token_kind`)."""
    alternatives: tuple[tuple[str, float], ...] = ()
    """The teacher's most likely tokens there, with their log-probs."""

    @property
    def kl(self) -> float | None:
        """Its reverse KL, student minus teacher."""
        return None if self.student is None or self.teacher is None else self.student - self.teacher


@dataclass(frozen=True)
class TokenAnswer:
    """An answer token by token."""

    when: str
    tokens: tuple[Token, ...]
    left_out: int
    sentence: str


@dataclass(frozen=True)
class TokenRow:
    """The answers to one prompt, before and after training."""

    row: str
    prompt: str
    prompt_left_out: int
    answers: tuple[TokenAnswer, ...]


@dataclass(frozen=True)
class Tokens:
    """Answers whose tokens are coloured by their reverse KL."""

    rows: tuple[TokenRow, ...]
    sentence: str
    opened: int = 4


Block = Paragraph | Missing | Facts | Table | Code | Chart | Legend | Lanes | Estimates | Confusion | Answers | Tokens


@dataclass(frozen=True)
class Section:
    """A part with a heading."""

    id: str
    title: str
    blocks: Sequence[Block]
    label: str = ""
    """What the table of contents calls it; "" for its title."""


@dataclass(frozen=True)
class Report:
    """A page."""

    title: str
    kind: str
    """What it is about, in two words."""
    made: str
    """When, and of which folder."""
    sections: Sequence[Section] = field(default_factory=tuple)
