import gc
import os
import pickle

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

# Engines on two cores: more OpenMP threads make them slower. Set before torch is imported anywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_collection_finish():
    """What the imports of torch and verl left lives to the end: the garbage collector need not look at it again."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def yaml_is_parsed_once():
    """Parsing verl's two dozen files is half of a composition, and tests compose more than a hundred times."""
    Plugins.instance()  # makes the classes of Hydra's sources anew
    from hydra._internal.core_plugins.file_config_source import FileConfigSource

    parse, parsed = FileConfigSource.load_config, {}

    def load(self, config_path: str):
        file = os.path.join(self.path, self._normalize_file_name(config_path))
        known = (file, os.path.getmtime(file)) if os.path.exists(file) else None
        if known is None:
            return parse(self, config_path)  # raises
        if known not in parsed:
            parsed[known] = pickle.dumps(parse(self, config_path))
        return pickle.loads(parsed[known])  # half the time of a deep copy

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileConfigSource, "load_config", load)
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
