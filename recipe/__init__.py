"""The verbs, one a file."""

from pathlib import Path

# Beside this folder in a checkout, inside the package in a wheel.
CONFIGS = Path(__file__).parent.parent / "configs"
PROMPTS = Path(__file__).parent.parent / "data" / "prompts"
