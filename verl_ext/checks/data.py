"""What the rows hold, beside what their reader refuses. Each function is a check of `verl_ext.checks.registry`."""

from verl_ext.checks.context import COLUMNS, Context
from verl_ext.checks.finding import OK, WARN, Finding
from verl_ext.data.rows import MOST_LABELS, known_labels, label_set_of, without_rows
from verl_ext.run.plain_text import written_in
from verl_ext.run.settings import settings_of
from verl_ext.trainer.config import LabelReadingConfig


def labels(context: Context) -> Finding:
    """The labels that the reward reads are those of the rows, and each has a row to be learnt from."""
    label_set = settings_of(context.config.method.labels, LabelReadingConfig).label_set
    trained, known = known_labels(context.rows), known_labels([*context.rows, *context.heldout])
    if label_set and (others := without_rows(known, label_set)):
        raise ValueError(
            f"method.labels.label_set: the data also has {', '.join(others[:20])}; name all labels of the task"
        )
    if label_set and (unseen := without_rows(label_set, trained)):
        seen = f"no row of data.train_files has the label {', '.join(unseen)}"
        return Finding(WARN, seen, "a student cannot learn it; give rows, or leave it out of method.labels.label_set")
    if not known:
        problems = any(row["reward_model"]["ground_truth"] for row in context.rows)
        return Finding(OK, "problems, no labels" if problems else "the right answers are not known: no reward")
    return Finding(OK, f"{len(known)} labels" if len(known) <= MOST_LABELS else f"{len(known)} answers, each its own")


def special_tokens(context: Context) -> Finding:
    """Special tokens that the rows hold as text are counted: they are read as plain text."""
    found = {
        number: tokens
        for number, row in enumerate(context.rows)
        if (tokens := [t for column in COLUMNS for t in written_in(context.student_tokenizer, row[column])])
    }
    if not found:
        return Finding(OK, "none in the rows")
    number, tokens = next(iter(found.items()))
    shown = ", ".join(sorted(set(tokens))[:4])
    seen = f"{len(found)} of {len(context.rows)} rows hold special tokens as text (first: row {number}, {shown})"
    return Finding(WARN, seen, "they are read as plain text and end no turn; take them out where they are left-overs")


def label_set_of_run(context: Context) -> list[str]:
    """All labels of a run's training and held-out rows; empty where these are answers of their own."""
    return label_set_of([*context.rows, *context.heldout])
