"""A run joins no Ray that runs what anybody sends it, unless that is said."""

import pytest

from verl_ext.run.ray_token import check_token, is_own

CLUSTER = "10.0.0.1:6379"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    for variable in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_ray_of_a_runs_own_needs_nothing():
    for address in (None, "", "local"):
        assert is_own(address)
        assert check_token(address) == "a Ray of this run's own, with a token of its own"


@pytest.mark.parametrize("address", [CLUSTER, "auto", "ray://10.0.0.1:10001"])
def test_a_cluster_without_a_token_is_refused(address, monkeypatch):
    with pytest.raises(
        ValueError, match=rf"^ray_kwargs\.ray_init\.address={address}: whoever reaches.*RAY_AUTH_TOKEN is"
    ):
        check_token(address)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # said, and there is none
    with pytest.raises(ValueError, match=r"RAY_AUTH_MODE=disabled"):
        check_token(address)


def test_a_cluster_with_one_is_joined(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x")
    assert "RAY_AUTH_TOKEN" in check_token(CLUSTER)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert check_token(CLUSTER) == "RAY_AUTH_MODE=disabled: Ray asks nobody for a token"


@pytest.mark.parametrize("named", [True, False])
def test_its_file_is_its_users_alone(home, monkeypatch, named):
    file = home / ("elsewhere" if named else ".ray/auth_token")
    file.parent.mkdir(exist_ok=True)
    file.write_text("token")
    if named:
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    file.chmod(0o644)  # as Ray writes it
    with pytest.raises(ValueError, match=rf"address={CLUSTER}: others may read {file} \(mode 644\); chmod 600 {file}"):
        check_token(CLUSTER)
    file.chmod(0o600)
    assert str(file) in check_token(CLUSTER)
    file.unlink()
    with pytest.raises(ValueError, match="cannot be read" if named else "whoever reaches"):
        check_token(CLUSTER)
