"""A tool of verl's tool agent: `actor_rollout_ref.rollout.multi_turn.function_tool_path` names this file."""

import re

from verl.tools.function_tool import function_tool


@function_tool
def calculator(expression: str) -> str:
    """Adds two numbers.

    Args:
        expression: The sum, such as 12+34.
    """
    numbers = re.fullmatch(r"\s*(\d{1,9})\s*\+\s*(\d{1,9})\s*", expression)
    if numbers is None:
        raise ValueError(f"{expression[:40]!r} is no sum of two numbers")
    return str(int(numbers[1]) + int(numbers[2]))
