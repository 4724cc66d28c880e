"""A run on one machine keeps to loopback; a cluster's is told apart, and said."""

import os
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from verl_ext.run.loopback import ENVIRONMENT, open_doors
from verl_ext.run.ray_token import RAY_TOKEN
from verl_ext.sft.environment import prepare_environment


@pytest.fixture
def kept(monkeypatch, compose_run):
    """`kept(...)`: what `ray.init` gets of a run with these overrides, and Ray's switch afterwards."""
    from ray._private import ray_constants

    from verl_ext.platform.ray_address import keep_to_loopback

    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
    for variable in (ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, RAY_TOKEN):
        monkeypatch.setenv(variable, "")  # so that it is as before when the test has ended
        monkeypatch.delenv(variable)

    def keep(*overrides: str):
        ray_init = OmegaConf.to_container(compose_run(*overrides).ray_kwargs.ray_init, resolve=True)
        found = keep_to_loopback(ray_init)
        switch = (ray_constants.ENABLE_RAY_CLUSTER, os.environ.get(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR))
        return ray_init, found, switch

    return keep


@pytest.mark.parametrize("address", ["null", "local"])
def test_a_ray_of_our_own_is_not_looked_for_and_has_a_token_of_its_own(kept, monkeypatch, address):
    _, found, _ = kept(f"ray_kwargs.ray_init.address={address}")
    assert found["address"] == "local"
    assert len(first := os.environ[RAY_TOKEN]) == 64
    monkeypatch.delenv(RAY_TOKEN)
    kept()
    assert os.environ[RAY_TOKEN] != first
    monkeypatch.setenv(RAY_TOKEN, "of the user")
    kept()
    assert os.environ[RAY_TOKEN] == "of the user"


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_a_ray_of_our_own_stays_on_loopback_and_so_do_its_workers(kept, platform):
    given, found, switch = kept(f"platform={platform}")
    assert switch == (False, "0")
    assert found["runtime_env"]["env_vars"] == ENVIRONMENT | given["runtime_env"]["env_vars"]
    assert found | {"runtime_env": None} == given | {"runtime_env": None}


def test_a_variable_that_the_user_set_in_the_configuration_stays(kept):
    _, found, _ = kept("+ray_kwargs.ray_init.runtime_env.env_vars.NCCL_SOCKET_IFNAME=eth7")
    assert found["runtime_env"]["env_vars"]["NCCL_SOCKET_IFNAME"] == "eth7"


def test_a_running_cluster_keeps_its_addresses(kept):
    given, found, switch = kept("hardware=cpu_2_nodes", "ray_kwargs.ray_init.address=10.0.0.1:6379")
    assert found == given
    assert not set(ENVIRONMENT) & set(found["runtime_env"]["env_vars"])
    assert switch == (True, None)


def test_what_a_cluster_opens_is_said_with_the_way_to_name_it():
    assert open_doors(["127.0.0.1", "127.0.0.2", "::1"]) == ""
    said = open_doors(["10.0.0.2", "127.0.0.1", "10.0.0.1"])
    assert said.startswith("warning: the run listens on 10.0.0.1, 10.0.0.2: Ray and TransferQueue ask for Ray's token")
    assert "--node-ip-address" in said


@pytest.mark.parametrize(("local", "world", "kept"), [("2", "2", True), ("2", "4", False)])
def test_ranks_of_sft_keep_to_loopback_where_all_are_on_this_machine(monkeypatch, local, world, kept):
    for key, value in {"RANK": "0", "LOCAL_WORLD_SIZE": local, "WORLD_SIZE": world}.items():
        monkeypatch.setenv(key, value)
    for key in ENVIRONMENT:
        monkeypatch.delenv(key, raising=False)
    prepare_environment({})
    assert [key in os.environ for key in ENVIRONMENT] == [kept] * len(ENVIRONMENT)
    for key in ENVIRONMENT:
        monkeypatch.delenv(key, raising=False)


def test_the_launcher_runs_a_module_and_its_spawned_processes_with_our_stores():
    code = "from verl_ext.platform import torch_store; print(torch_store.__file__)"
    file = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True).stdout.strip()
    done = subprocess.run(
        [sys.executable, "-P", file, "json.tool", "--help"], text=True, capture_output=True, check=True
    )
    assert "usage" in done.stdout
