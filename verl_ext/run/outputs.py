"""Does this output exist already, made with the same settings? Every command that can be run twice asks here."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from verl_ext.run.files import read_json, reason_of, sha256


def is_made(what: str, made_with: Mapping[str, Any], settings: Mapping[str, Any], overwrite: bool) -> bool:
    """True where `made_with`, the settings on record of an output that exists, are these `settings`.

    False where they are others and it may be replaced. Settings are as JSON has them.

    Raises:
        ValueError: if they are others and it may not; the message begins with `what` and names those that differ.
    """
    if made_with == settings:
        return True
    if overwrite:
        return False
    raise refusal(what, f"made with other settings ({', '.join(differing(made_with, settings))})")


def is_complete(
    folder: Path, manifest: str, files: Sequence[str], settings: Mapping[str, Any], overwrite: bool
) -> bool:
    """True where `folder` holds `files` as its `manifest` describes them, made with `settings`; False to make them.

    The manifest is JSON with `settings` and `files`, the SHA-256 of each by name. It is written first: a file that is
    missing beside it was not reached before an interruption, and is made again.

    Raises:
        ValueError: if there is something else that may not be replaced: files that were made with other settings, that
            changed since, or of which no manifest says how they were made.
    """
    present = [name for name in files if (folder / name).exists()]
    record = folder / manifest
    if not present and not record.exists():
        return False
    what = f"{folder} holds {', '.join(present or [manifest])}"
    if record.exists():
        try:
            found = read_json(record, "write somewhere else, or set overwrite=true")
            made_with, hashes = dict(found["settings"]), dict(found["files"])
        except (ValueError, TypeError, LookupError) as error:
            if overwrite:
                return False
            raise refusal(what, f"{manifest} does not say how they were made ({reason_of(error)})") from None
        if not is_made(what, made_with, settings, overwrite):
            return False
        changed = [name for name in present if sha256(folder / name) != hashes.get(name)]
        if not changed:
            return len(present) == len(files)
        reason = f"{', '.join(changed)} changed since it was written"
    else:
        reason = f"no {manifest} says how they were made"
    if overwrite:
        return False
    raise refusal(what, reason)


def refusal(what: str, reason: str) -> ValueError:
    """What a user reads where an output is in the way."""
    return ValueError(f"{what}: {reason}; write somewhere else, or set overwrite=true")


def differing(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Keys whose values differ, sorted; of mappings in both `key.key`."""
    names = []
    for key in sorted({*found, *wanted}, key=str):
        left, right = found.get(key), wanted.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            names += [f"{key}.{name}" for name in differing(left, right)]
        elif left != right:
            names.append(key)
    return names
