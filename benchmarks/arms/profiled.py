"""Training under a profiler, for `benchmarks.scale`: `python -m benchmarks.arms.profiled platform=cpu run_dir=...`

`ProfiledManager` lives in the trainer's process, whose main thread it profiles, and its workers profile their event
loops. Each writes `run_dir/profile-NAME.json` at the start of every step: seconds in our functions since training
began. No check of `recipe.on_policy_distillation` runs, one of which refuses another manager than ours.
"""

import cProfile
import pstats
import time
from pathlib import Path
from typing import Any

import hydra
import ray
from omegaconf import DictConfig, OmegaConf

from verl_ext.checks.schemas import prepare_training_configs
from verl_ext.run.files import save_resolved_config, write_json
from verl_ext.run.resume import begin
from verl_ext.trainer.agent_loop import DistillationAgentLoopManager, DistillationAgentLoopWorker

OURS = "/verl_ext/"
WAITING = ("sleep", "acquire", "select", "poll", "epoll_wait", "get_objects")


def own_seconds(profile: cProfile.Profile) -> float:
    """CPU time in functions of ours, and in built-in ones while a function of ours called them, waits left out."""
    seconds = 0.0
    for (file, _, name), (_, _, own, _, callers) in pstats.Stats(profile).stats.items():  # pyright: ignore[reportAttributeAccessIssue]
        if OURS in file:
            seconds += own
        elif file == "~" and not any(word in name for word in WAITING):
            seconds += sum(spent[2] for (caller, *_), spent in callers.items() if OURS in caller)
    return seconds


class Profiler:
    """Of the thread that calls it."""

    def __init__(self, file: Path) -> None:
        self._file, self._profile, self._steps = file, cProfile.Profile(time.thread_time), 0

    def step(self) -> None:
        """A step begins: write what the ones before took."""
        self._profile.disable()
        if self._steps:
            found = {"steps": self._steps, "own_seconds": own_seconds(self._profile), "unix_time": time.time()}
            write_json(self._file, found)
        self._steps += 1
        self._profile.enable()


class ProfiledWorker(DistillationAgentLoopWorker):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._profiler = Profiler(Path(self.config.run_dir) / "profile-agent_loop.json")

    async def generate_sequences(self, batch: Any) -> None:
        self._profiler.step()
        await super().generate_sequences(batch)


class ProfiledManager(DistillationAgentLoopManager):
    """With one worker, as on a CPU."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(ProfiledWorker)
        self._profiler = Profiler(Path(self.config.run_dir) / "profile-trainer.json")

    def generate_sequences(self, prompts: Any) -> None:
        self._profiler.step()
        super().generate_sequences(prompts)


@hydra.main(version_base=None, config_path="../../configs", config_name="on_policy_distillation")
def main(config: DictConfig) -> None:
    from verl_ext.trainer.launch import launch

    run_dir = Path(config.run_dir).resolve()
    run_dir.mkdir(parents=True, exist_ok=True)
    config.run_dir = str(run_dir)
    config.actor_rollout_ref.rollout.agent.agent_loop_manager_class = "benchmarks.arms.profiled.ProfiledManager"
    begin(config)
    save_resolved_config(OmegaConf.to_yaml(config, resolve=True), config.run_dir)
    launch(config, time.perf_counter())


if __name__ == "__main__":
    prepare_training_configs()
    main()
