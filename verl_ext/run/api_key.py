"""The API key of a server: from the environment, or a file that is its user's alone, into a header and nowhere else."""

import os
import re
import stat
from pathlib import Path

SHORTEST = 16
"""Characters of a key that a server of ours asks for; `openssl rand -hex 32` makes 64."""
FILE = "_FILE"
"""What follows the variable's name in the name of the one that holds the path of a file with the key."""
_NAME = re.compile(r"([A-Z][A-Z0-9_]*)?(KEY|TOKEN|SECRET)")
_KEY = re.compile(r"[!-~]+")
"""Characters that a header holds as they are."""


def check_key_name(key: str, name: str) -> None:
    """Refuse a variable whose name is not that of a key: its value would go to servers and into their settings.

    Args:
        key: the setting, for the message.
        name: of the variable. Shown only where there is one: it may be a key that stands in the wrong place.

    Raises:
        ValueError: naming `key` and the fix.
    """
    if not _NAME.fullmatch(name):
        shown = f"={name} is the name of another thing" if name in os.environ else " is no name of a variable for a key"
        raise ValueError(f"{key}{shown}; give one that ends in KEY, TOKEN or SECRET, as TEACHER_API_KEY")


def api_key(name: str) -> str:
    """The key in the environment variable `name`, or in the file that `<name>_FILE` names; empty where neither is set.

    Raises:
        ValueError: if the file cannot be read or is not its user's alone, or what it holds is no key.
    """
    source, key = name, os.environ.get(name, "")
    if not key and (path := os.environ.get(name + FILE, "")):
        source, key = f"{name}{FILE}={path}", _read_private(f"{name}{FILE}", Path(path).expanduser()).strip()
        if not key:
            raise ValueError(f"{source}: the file is empty; write the key into it")
    if key and not _KEY.fullmatch(key):
        raise ValueError(f"{source}: the key holds a space, a line break or another character than ASCII; correct it")
    return key


def strong_key(name: str) -> str:
    """The same, of a server of ours. ValueError where it can be guessed."""
    key = api_key(name)
    if key and len(key) < SHORTEST:
        raise ValueError(
            f"{name}: the key has {len(key)} characters, and {SHORTEST} are the least; make one: openssl rand -hex 32"
        )
    return key


def bearer_header(name: str) -> dict[str, str]:
    """The header that carries the key of `name`; none where there is no key. Raises as `api_key` does."""
    key = api_key(name)
    return {"Authorization": f"Bearer {key}"} if key else {}


def check_private(name: str, path: Path) -> None:
    """Refuse a file of a secret that others may read or write, or that belongs to somebody else.

    Raises:
        ValueError: naming `name`, the file and the fix.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise ValueError(f"{name}: {path} cannot be read ({error.strerror}); correct the path") from None
    if not stat.S_ISREG(status.st_mode) or status.st_uid not in (os.getuid(), 0):
        raise ValueError(f"{name}: {path} is no file of yours; copy the key into one that is")
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise ValueError(f"{name}: others may read {path} (mode {stat.S_IMODE(status.st_mode):o}); chmod 600 {path}")


def _read_private(name: str, path: Path) -> str:
    check_private(name, path)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{name}: {path} cannot be read ({error}); correct the path") from None
