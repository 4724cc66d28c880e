"""Whom a Ray listens to: one of a run's own to that run, a cluster to those who have its token. Imports no Ray."""

import os
from pathlib import Path

from verl_ext.run.api_key import check_private

OWN_RAY = "local"
"""`ray_init.address` of a run that starts a Ray of its own, on this machine alone; null is the same."""
RAY_TOKEN = "RAY_AUTH_TOKEN"
"""The environment variable of Ray's own key, which nobody needs who does not talk to Ray."""
MODE, FILE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"


def is_own(address: str | None) -> bool:
    """The run starts a Ray of its own."""
    return address in (None, "", OWN_RAY)


def token() -> str | None:
    """Ray's token, as Ray finds it; None where it asks nobody for one.

    Raises:
        OSError: if there is none.
    """
    if os.environ.get(MODE, "token").lower() != "token":
        return None
    if given := os.environ.get(RAY_TOKEN):
        return given.strip()
    return token_file().read_text().strip()


def token_file() -> Path:
    """Where Ray reads its token where the environment has none."""
    named = os.environ.get(FILE)
    return Path(named).expanduser() if named else Path.home() / ".ray" / "auth_token"


def check_token(address: str | None) -> str:
    """Refuse a cluster whose Ray runs what anybody sends it, unless it is said that it may; how Ray asks for a token.

    Ray takes the token from `RAY_AUTH_TOKEN`, else from the file that `RAY_AUTH_TOKEN_PATH` names, else from its own.

    Raises:
        ValueError: if there is no token, or others may read its file.
    """
    key, mode = f"ray_kwargs.ray_init.address={address}", os.environ.get(MODE)
    if is_own(address):
        return "a Ray of this run's own, with a token of its own"
    if mode is not None and mode.lower() != "token":
        return f"{MODE}={mode}: Ray asks nobody for a token"
    if os.environ.get(RAY_TOKEN):
        return f"Ray asks for the token of {RAY_TOKEN}"
    path = token_file()
    if not os.environ.get(FILE) and not path.exists():
        raise ValueError(
            f"{key}: whoever reaches a Ray without a token runs code on its nodes, and {RAY_TOKEN} is not set; make "
            f"one (docs/security.md), or export {MODE}=disabled where nobody else reaches it"
        )
    check_private(key, path)
    return f"Ray asks for the token of {path}"
