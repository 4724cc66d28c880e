"""The API key of a server: from an environment variable into a header, and nowhere else."""

import os


def bearer_header(api_key_env: str) -> dict[str, str]:
    """The header that carries the key in the environment variable `api_key_env`; none where that is unset or empty."""
    api_key = os.environ.get(api_key_env, "")
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}
