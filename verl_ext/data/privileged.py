"""What the teacher alone is shown of a row beside the prompt, as a solution or a feedback: a column of the source."""

import re
from collections.abc import Mapping
from typing import Any

from verl_ext.data.text_files import value_as_text

CONTEXT = "{context}"
"""Where the teacher's prompt takes it; plain text where no column is named."""


def context_of(place: str, column: str, values: Mapping[str, Any]) -> str:
    """The text of a row's column; "" where none is named. ValueError naming file and row where the row has none."""
    if not column:
        return ""
    text = value_as_text(f"{place}: {column}", values.get(column))
    if not text:
        raise ValueError(
            f"{place}: {column} is missing, which context={column} shows to the teacher; write it, or take the row out"
        )
    return text


def check_context(column: str, source: str, template: str, student_template: str) -> None:
    """ValueError where a column is named that no row shows, or that the student would be shown."""
    if not column:
        return
    if source not in ("file", "hub"):
        raise ValueError(
            f"context={column} goes with source=file and source=hub; with source={source} leave it out, and write it "
            "into the teacher's messages"
        )
    if CONTEXT not in template:
        raise ValueError(f"context={column}: the teacher's prompt has no {CONTEXT} where it goes; add it")
    if CONTEXT in student_template:
        raise ValueError(f"student_prompt: has {CONTEXT}, which the teacher alone is shown; take it out")


def filled(template: str, fields: Mapping[str, str]) -> str:
    """A template with its fields, each a name in braces, filled in; a field's own text is not searched for others."""
    pattern = "|".join(map(re.escape, fields))
    return re.sub(pattern, lambda found: fields[found[0]], template)
