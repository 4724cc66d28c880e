import gc
import os
import signal

import pytest
from composed_once import composed_once
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

# Engines on two cores: more OpenMP threads make them slower. Set before torch is imported anywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_collection_finish():
    """What the imports of torch and verl left lives to the end: the garbage collector need not look at it again."""
    gc.freeze()


# Under nohup, or in the background of a shell, they are ignored, and so in every process that a test starts and stops.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def signals_are_as_they_were():
    """A verb that runs in this process turns them into Ctrl-C; a fork of a later test would end as pytest does."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def files_are_composed_once():
    with composed_once():
        yield


@pytest.fixture(scope="session")
def compose_run(pytestconfig):
    """Compose the training configuration as the command line does: `compose_run("platform=cpu", ...)`."""
    from verl_ext.checks.schemas import prepare_training_configs

    prepare_training_configs()

    def run(*overrides: str):
        required = ["student.path=MODEL", "data.train_files=train.parquet", "data.val_files=val.parquet"]
        with initialize_config_dir(str(pytestconfig.rootpath / "configs"), version_base=None):
            return compose("on_policy_distillation", [*required, *overrides])

    return run


@pytest.fixture(scope="session")
def composed_config(compose_run):
    config = compose_run("platform=cpu", "task=demo")
    OmegaConf.resolve(config)
    return config
