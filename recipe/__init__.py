"""The verbs, one a file."""

from pathlib import Path

from verl_ext.run.parent import follow_parent

# Beside this folder in a checkout, inside the package in a wheel.
CONFIGS = Path(__file__).parent.parent / "configs"
PROMPTS = Path(__file__).parent.parent / "data" / "prompts"

# A process that a verb's engine starts imports the verb first: from here on it ends with the verb.
follow_parent()
