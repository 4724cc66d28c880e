"""Exported folders on the Hugging Face hub: `--push OWNER/NAME` of `verl_ext.student.export`; private by default.

The token is found by huggingface_hub alone (`HF_TOKEN`, `hf auth login`): nothing here reads, shows or writes it.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_ext.run.models import is_hub_name

GIT_ATTRIBUTES = ".gitattributes"
"""The hub puts it into a repository that it makes."""
SUFFIXES = {"student": "", "adapter": "-adapter", "gguf": "-GGUF"}
"""Of the repository, by exported folder."""
WORDS = 300
"""Characters of what the hub says that an error shows."""


@dataclass(frozen=True)
class Repository:
    """Of one exported folder."""

    name: str
    """OWNER/NAME on the hub."""
    public: bool = False
    """Anybody may read it."""
    replace: bool = False
    """What it holds already is removed in the same commit; it stays in the history."""

    def __post_init__(self) -> None:
        if not is_hub_name(self.name):
            raise ValueError(f"--push {self.name} is no name that the hub takes: give OWNER/NAME")

    def open(self) -> None:
        """Make the repository, or see that the one of this name may be written over: before anything is exported.

        Raises:
            ValueError: in one line, with the fix: no token or one without the right, no network, a name or a
                repository that is not to be written.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=True)
        with self._said_in_one_line():
            api.create_repo(self.name, private=not self.public, exist_ok=True)
            there = api.model_info(self.name)
        if not self.replace and [file for file in there.siblings or () if file.rfilename != GIT_ATTRIBUTES]:
            raise ValueError(f"--push {self.name} exists and holds files: give another name, or --replace")
        if there.private == self.public:
            kind, fix = ("private", "leave --public out") if there.private else ("public", "add --public")
            raise ValueError(f"--push {self.name} exists and is {kind}: {fix}, or give another name")

    def upload(self, folder: Path) -> str:
        """Put every file of a folder into the repository, as one commit, and compare what arrived; its address.

        Raises:
            ValueError: as `open`, and where the hub holds another file than was sent, or lacks one.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=True)
        with self._said_in_one_line():
            commit = api.upload_folder(
                repo_id=self.name,
                folder_path=folder,
                commit_message="Exported by verl-opd",
                delete_patterns="*" if self.replace else None,
            )
            found = api.verify_repo_checksums(self.name, revision=commit.oid, local_dir=folder)
        wrong = [*(each["path"] for each in found.mismatches), *found.extra_paths, *found.missing_paths]
        if wrong := [path for path in wrong if path != GIT_ATTRIBUTES]:
            raise ValueError(
                f"--push {self.name}: {wrong[0]} on the hub is not what was exported; add --replace, again"
            )
        return f"{commit.repo_url} ({'public' if self.public else 'private'})"

    @contextlib.contextmanager
    def _said_in_one_line(self) -> Iterator[None]:
        """What the hub and the network refuse, as a ValueError that names the fix."""
        from httpx import HTTPError
        from huggingface_hub import constants
        from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

        what = f"--push {self.name}"
        try:
            yield
        except OfflineModeIsEnabled:
            raise ValueError(f"{what}: HF_HUB_OFFLINE=1 keeps it from the hub; set HF_HUB_OFFLINE=0") from None
        except LocalTokenNotFoundError:
            fix = "set HF_TOKEN to one that may write, or log in with `hf auth login`"
            raise ValueError(f"{what} needs a token of the hub: {fix}") from None
        except HfHubHTTPError as error:
            raise ValueError(f"{what}: {_refusal(error)}") from None
        except HTTPError as error:
            where = f"{constants.ENDPOINT} does not answer ({type(error).__name__}: {_line(str(error))})"
            raise ValueError(
                f"{what}: {where}; set HF_ENDPOINT right, or start it again where there is a network"
            ) from None
        except (RuntimeError, OSError) as error:  # huggingface_hub's of a file that was not taken; the disk's
            why = _line(f"{error} {error.__cause__ or ''}")
            raise ValueError(f"{what}: the upload ended early ({why}); the same command starts it again") from None


def repositories(name: str, folders: Sequence[str], *, public: bool, replace: bool) -> dict[str, Repository]:
    """Exported folder -> where it goes: `student` to `name`, others beside it, for a repository is one model.

    Raises:
        ValueError: if the hub takes no such name.
    """
    return {folder: Repository(name + SUFFIXES[folder], public, replace) for folder in folders}


def _refusal(error: Any) -> str:
    """Why the hub says no, and the fix. `error`: HfHubHTTPError."""
    status, said = error.response.status_code, _line(error.server_message or str(error))
    if status == 401:
        return "the hub does not know the token; set HF_TOKEN to a valid one (it comes before `hf auth login`)"
    if status == 403:
        return (
            f"the token may not write there ({said}); give an OWNER that is yours, or a token with the right to write"
        )
    return f"the hub refuses it ({status}: {said}); change what it names, and start it again"


def _line(text: str) -> str:
    return " ".join(text.split())[:WORDS]
