"""What a bug report holds, and that it holds no secret."""

import pytest
from omegaconf import OmegaConf

from recipe.doctor import doctor
from verl_ext.checks.config import DoctorConfig

SECRETS = {
    "TEACHER_API_KEY": "sk-of-the-teacher",
    "HF_TOKEN": "hf_of-the-hub",
    "MY_DB_PASSWORD": "of-the-database",
    "PLAIN_NAME": "of-a-plain-name",  # asked for by oc.env
}
OVERRIDES = {
    "teacher.mode": "external",
    "teacher.urls": ["http://admin:of-the-url@127.0.0.1:9", "http://127.0.0.1:9/?sig=of-the-query"],
    "teacher.request_timeout_s": 5,
    "teacher.api_key_env": "of-somebody-who-mistook-it",
    "teacher.extra_args": ["--api-key", "of-the-next-word", "--admin-api-key=of-the-same-word", "--seed", "7"],
    "doctor.reference_url": "https://user:of-the-reference@host/path",
    "ray_kwargs.ray_init._redis_password": "of-redis",
    "ray_kwargs.ray_init.runtime_env.env_vars.PLAIN": "of-the-workers-environment",
    "trainer.project_name": "${oc.env:PLAIN_NAME}",
    "trainer.experiment_name": "${trainer.project_name}-again",
    "trainer.proxies": [{"accessToken": "of-a-list-of-mappings"}, "--token of-one-string", "Bearer of-a-header"],
    "trainer.note": "it says of-the-database",  # the value of a variable, under a key that says nothing
    "run_dir": "outputs/hf_of-the-hub",
}


@pytest.fixture
def shown(compose_run, monkeypatch, capsys) -> str:
    """What `python -m recipe.doctor --report` prints for a run full of secrets."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    config = compose_run("platform=cpu", "task=demo")
    OmegaConf.set_struct(config, False)
    config.doctor = vars(DoctorConfig())
    for key, value in ({"doctor.report": True} | OVERRIDES).items():
        OmegaConf.update(config, key, value, force_add=True)
    doctor(config)
    return capsys.readouterr().out


def test_no_secret_is_shown(shown):
    secrets = [*SECRETS.values(), "of-the-", "of-a-", "of-one-", "of-redis", "of-somebody"]
    assert [line for line in shown.splitlines() if any(secret in line for secret in secrets)] == []


def test_what_a_report_needs_is_there(shown):
    lines = [line.strip() for line in shown.splitlines()]
    wanted = ("python: 3.", "verl: 0.9.1", "ray: ", "vllm: ", "teacher's sglang: ", "cpu: ", "memory: ", "gpu: ")
    for start in wanted:
        assert any(line.startswith(start) for line in lines), start
    assert "fail: models: student.path=MODEL: no such folder" in shown
    assert "trainer.device: 'cpu'" in lines
    assert "data.train_batch_size: 32" in lines
    assert "actor_rollout_ref.rollout.max_num_batched_tokens: 8192" in lines
    assert "teacher.extra_args: [--api-key, <hidden>, --admin-api-key=<hidden>, --seed, 7]" in lines
    assert "teacher.urls: [http://<hidden>@127.0.0.1:9, http://127.0.0.1:9/?sig=<hidden>]" in lines
    assert "ray_kwargs.ray_init.runtime_env.env_vars.PLAIN: <hidden>" in lines


def test_what_is_not_given_is_shown_as_such(compose_run, capsys):
    config = compose_run("platform=cpu")
    OmegaConf.set_struct(config, False)
    config.doctor = vars(DoctorConfig(report=True))
    config.student.path = "???"
    doctor(config)
    shown = capsys.readouterr().out
    assert "fail: required settings: student.path is not set: give student.path=..." in shown
    assert "student.path: ???" in shown
    assert "teacher.model_path: cannot be resolved" in shown
