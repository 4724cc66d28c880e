"""From a run's settings to a scorer: one teacher or several, each with or without a store."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_ext.run.settings import settings_of
from verl_ext.teacher.client.pool import TeacherPool
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.store.identity import fingerprint_for_store
from verl_ext.teacher.store.store import ScoreStore
from verl_ext.teacher.store.stored_scorer import StoredScorer
from verl_ext.teacher.types import DEFAULT_TEACHER, Score, Scorer, ScoreRequest, TeacherError

COLUMN = "teacher"
"""The data's column that names a row's teacher, where `teachers` lists several."""


def teachers_of(config: DictConfig) -> dict[str, TeacherConfig]:
    """The teachers of a run by name: `teacher` alone, or each of `teachers` as departures from it.

    Raises:
        ValueError: if a setting is wrong; the key named is that of `teacher`, the message names the teacher.
        omegaconf.errors.ConfigKeyError: for an unknown key.
    """
    if not config.teachers:
        return {DEFAULT_TEACHER: settings_of(config.teacher, TeacherConfig)}
    found = {}
    for name, departures in config.teachers.items():
        if not OmegaConf.is_dict(departures):
            raise ValueError(f"teachers.{name}={departures}: expected settings, as +teachers.{name}.model_path=MODEL")
        try:
            found[str(name)] = settings_of(OmegaConf.merge(config.teacher, departures), TeacherConfig)
        except ValueError as error:
            raise ValueError(f"teachers.{name}: {error}") from error
    return found


def teacher_of_row(row: Mapping[str, Any], teachers: Mapping[str, Any]) -> str:
    """Name of the row's teacher. Raises ValueError if there are several and the row names none of them."""
    if set(teachers) == {DEFAULT_TEACHER}:
        return DEFAULT_TEACHER
    name = row.get(COLUMN)
    if name not in teachers:
        raise ValueError(
            f"column {COLUMN} says {name!r}, but teachers has {', '.join(teachers)}: add it to one of them"
        )
    return str(name)


def vocab_size_of(model_path: str, *, trust_remote_code: bool) -> int:
    """Rows of the model's embedding, from its configuration alone."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(model_path, trust_remote_code=trust_remote_code).get_text_config().vocab_size


def identify(settings: TeacherConfig) -> dict[str, str]:
    """What the driver adds to the settings of a teacher with a store, so that every worker finds the same scores.

    Call it when external servers answer; of a managed teacher it reads the model's files, the first time all of them.

    Raises:
        ValueError: naming the key, if the store, the model's files or the engine cannot be read.
        TeacherError: if an external server does not score.
    """
    if settings.store_path is None:
        return {}
    folder = Path(settings.store_path).expanduser().absolute()
    if settings.fingerprint is not None:
        return {"store_path": str(folder)}

    async def ask(store: ScoreStore) -> str:
        if settings.mode == "managed" or settings.store_mode == "replay":
            return (await fingerprint_for_store(settings, store, [], None, 0)).id
        async with TeacherPool(settings, vocab_size := _vocab_size(settings)) as pool:
            return (await fingerprint_for_store(settings, store, settings.urls, pool, vocab_size)).id

    store = _open_store(settings)
    try:
        return {"store_path": str(folder), "fingerprint": asyncio.run(ask(store))}
    finally:
        store.close()


def _vocab_size(settings: TeacherConfig) -> int:
    assert settings.model_path is not None  # student.path is its default
    return vocab_size_of(settings.model_path, trust_remote_code=settings.trust_remote_code)


def _open_store(settings: TeacherConfig) -> ScoreStore:
    assert settings.store_path is not None
    return ScoreStore(Path(settings.store_path).expanduser(), int(settings.store_max_gib * 2**30))


def open_scorer(settings: TeacherConfig) -> Scorer:
    """The scorer of one teacher whose servers run, or whose store answers for it (`store_mode=replay`)."""
    pool = None if settings.store_mode == "replay" else TeacherPool(settings, _vocab_size(settings))
    if settings.store_path is None:
        assert pool is not None  # TeacherConfig: replay needs a store
        return pool
    assert settings.fingerprint is not None  # from identify()
    return StoredScorer(pool, _open_store(settings), settings.fingerprint, settings.store_mode)


class RoutedScorer:
    """A `Scorer` over several teachers: `request.teacher` picks one."""

    def __init__(self, scorers: Mapping[str, Scorer]) -> None:
        self.scorers = dict(scorers)

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Score | TeacherError]:
        indices: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            indices.setdefault(request.teacher, []).append(index)
        parts = await asyncio.gather(
            *(self.scorers[name].score([requests[i] for i in rows]) for name, rows in indices.items())
        )
        outcomes = {
            index: outcome
            for rows, part in zip(indices.values(), parts, strict=True)
            for index, outcome in zip(rows, part, strict=True)
        }
        return [outcomes[index] for index in range(len(requests))]

    async def prime(self, request: ScoreRequest) -> None:
        await self.scorers[request.teacher].prime(request)

    def metrics(self) -> dict[str, float]:
        """Sums over the teachers; where there are several, also each one's own, as `<name>/<metric>`."""
        total: dict[str, float] = {}
        for name, scorer in self.scorers.items():
            for key, value in scorer.metrics().items():
                total[key] = total.get(key, 0.0) + value
                if len(self.scorers) > 1:
                    total[f"{name}/{key}"] = value
        return total

    async def close(self) -> None:
        for scorer in self.scorers.values():
            await scorer.close()
