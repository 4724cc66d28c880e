"""What `configs/*.yaml` need before Hydra composes them."""

import importlib.util
import os
from pathlib import Path

from omegaconf import OmegaConf

from verl_ext.run.hydra import register_schema
from verl_ext.sft.config import SftConfig
from verl_ext.teacher.config import TeacherConfig
from verl_ext.trainer.config import MethodConfig
from verl_ext.trainer.pipeline_config import PipelineConfig
from verl_ext.trainer.replay.config import ReplayConfig
from verl_ext.trainer.report_config import ReportConfig


def prepare_training_configs() -> Path:
    """What `configs/*.yaml` need before Hydra composes them; return the folder of verl's own.

    Our schemas, the resolvers `divide` and `same`, and `VERL_CONFIG_DIR`, which they name in `hydra.searchpath`.

    Raises:
        ModuleNotFoundError: if verl is not installed.
    """
    register_schema("method_schema", MethodConfig)
    register_schema("pipeline_schema", PipelineConfig)
    register_schema("replay_schema", ReplayConfig)
    register_schema("report_schema", ReportConfig)
    register_schema("teacher_schema", TeacherConfig)
    register_schema("sft_schema", SftConfig)
    OmegaConf.register_new_resolver("divide", lambda dividend, divisor: dividend / divisor, replace=True)
    OmegaConf.register_new_resolver("same", lambda one, other: one == other, replace=True)
    spec = importlib.util.find_spec("verl")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("verl is not installed in this environment: run `make setup`")
    folder = Path(spec.origin).parent / "trainer" / "config"
    os.environ["VERL_CONFIG_DIR"] = str(folder)
    return folder
