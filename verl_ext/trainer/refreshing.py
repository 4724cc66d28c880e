"""verl's trainer where an earlier student teaches (`earlier.py`): it says when it is refreshed, and saves it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from omegaconf import DictConfig

from verl_ext.teacher.refresh import Refresh, refresh_of
from verl_ext.teacher.teachers import teachers_of
from verl_ext.trainer.earlier import FILE
from verl_ext.trainer.guarded import GuardedTrainer


class RefreshingTrainer(GuardedTrainer):
    """`GuardedTrainer`, whose weight syncs and checkpoints the teacher's adapter has a part in."""

    def __init__(self, config: DictConfig) -> None:
        super().__init__(config)
        refresh = refresh_of(teachers_of(config).values())
        self._orders = Orders(refresh) if refresh else None

    def _servers(self) -> list[Any]:
        return [server for replica in self.llm_server_manager.get_replicas() for server in replica.servers]

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        if self._orders and self.global_steps:
            trainer = self.config.trainer
            newest = Path(trainer.default_local_dir) / f"global_step_{self.global_steps}"
            folder = Path(trainer.resume_from_path) if trainer.resume_mode == "resume_path" else newest
            self._orders.load(self._servers(), folder)

    def _add_to_checkpoint(self, folder: Path) -> None:
        super()._add_to_checkpoint(folder)
        if self._orders:
            self._orders.save(self._servers(), folder)

    def on_init_end(self) -> None:
        if self._orders:
            self._orders.before_sync(self._servers(), self.global_steps)
        super().on_init_end()

    def sync_weights(self, sync: Callable[[], None]) -> None:
        def refreshed() -> None:
            if self._orders:
                self._orders.before_sync(self._servers(), self.global_steps)
            sync()

        super().sync_weights(refreshed)


class Orders:
    """When the teacher is refreshed, and where it is kept. `servers`: vLLM's, as Ray actors."""

    def __init__(self, refresh: Refresh) -> None:
        self._refresh = refresh
        self._refreshed = -1
        """Finished steps at the last refresh."""

    def before_sync(self, servers: list[Any], step: int) -> None:
        """`step` steps are finished, and their student is about to be sent."""
        if step % self._refresh.every == 0 and step > self._refreshed:
            tell(servers, "refresh_teacher", self._refresh.ema)
            self._refreshed = step

    def save(self, servers: list[Any], folder: Path) -> None:
        """Into a file whose name begins with the step of the last refresh."""
        tell(servers[:1], "save_teacher", str(folder / f"{self._refreshed}-{FILE}"))

    def load(self, servers: list[Any], folder: Path) -> None:
        """Raises FileNotFoundError where the checkpoint has none."""
        found = next(iter(folder.glob(f"*-{FILE}")), None)
        if found is None:
            raise FileNotFoundError(
                f"{folder}: no {FILE}, so its run kept no earlier student; set teacher.refresh_every and ema as it "
                "had them, or start another run (run_dir=...)"
            )
        tell(servers, "load_teacher", str(found))
        self._refreshed = int(found.name.split("-")[0])


def tell(servers: list[Any], method: str, *arguments: Any) -> None:
    """Have every worker of these servers do it."""
    ray.get([server.collective_rpc.remote(method, args=arguments) for server in servers])
