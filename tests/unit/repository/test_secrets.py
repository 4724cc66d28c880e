"""No key, token or private key is in the repository: every file is looked through for the forms that they have."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FORMS = {
    "private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----",
    "AWS": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "Hugging Face": r"\bhf_[A-Za-z0-9]{30,}\b",
    "OpenAI, Anthropic": r"\bsk-(?:ant-|proj-)?[A-Za-z0-9_-]{32,}\b",
    "GitHub": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{22,})\b",
    "GitLab": r"\bglpat-[A-Za-z0-9_-]{20,}\b",
    "Slack": r"\bxox[abprs]-[A-Za-z0-9-]{10,}\b",
    "Google": r"\bAIza[0-9A-Za-z_-]{35}\b",
    "PyPI": r"\bpypi-[A-Za-z0-9_-]{50,}\b",
    "JSON web token": r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",
    "password in a URL": r"\b[a-z][a-z0-9+.-]*://[^/\s:@\"'{}<$]+:(?!\.\.\.|of-|pass@)[^/\s:@\"'{}<$]{8,}@",
    "assigned": r"(?i)\b\w*(?:api_?key|secret|passw(?:or)?d|token)[\"']?\s*[:=]\s*[\"']?"
    r"(?=[^\"'\s]*\d)(?=[^\"'\s]*[A-Za-z])[A-Za-z0-9+/_-]{40,}",
}
"""What a secret of a service looks like; `assigned` is any long mixed word behind a name of one."""
LARGEST = 4 << 20


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        # A source archive: which of the folder's files are the repository's, nobody can say there.
        pytest.skip("not a checkout")
    return [ROOT / name for name in done.stdout.decode().split("\0") if name]


def secrets_in(text: str) -> list[str]:
    return [name for name, form in FORMS.items() if re.search(form, text)]


def test_no_secret_is_committed():
    files = [file for file in tracked() if file.is_file() and file.stat().st_size < LARGEST]
    assert len(files) > 200
    found = {str(file.relative_to(ROOT)): secrets_in(file.read_text(errors="replace")) for file in files}
    assert {name: kinds for name, kinds in found.items() if kinds} == {}


def test_no_file_of_secrets_is_committed():
    names = re.compile(r"(^|/)(\.env(\..*)?|\.netrc|auth_token|id_(rsa|ed25519|ecdsa)|[^/]*\.(pem|p12|pfx|key|kdbx))$")
    assert [file for file in map(str, tracked()) if names.search(file)] == []


KEY = "A1b2C3d4E5" * 6


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("private key", "-----BEGIN OPENSSH " + "PRIVATE KEY-----"),
        ("AWS", "AKIA" + KEY[:16].upper()),
        ("Hugging Face", "token: hf_" + KEY[:34]),
        ("OpenAI, Anthropic", "sk-" + KEY[:48]),
        ("GitHub", "ghp_" + KEY[:36]),
        ("Slack", "xoxb-" + KEY[:20]),
        ("JSON web token", ".".join(["eyJ" + KEY[:12]] * 2 + [KEY[:12]])),
        ("password in a URL", "https://me:" + KEY[:12] + "@host"),
        ("assigned", "TEACHER_API_KEY=" + KEY[:48]),
        ("assigned", '"password": "' + KEY[:44] + '"'),
    ],
)
def test_the_forms_are_seen(kind, text):
    assert kind in secrets_in(text)
