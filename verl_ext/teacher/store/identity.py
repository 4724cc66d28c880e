"""Under which fingerprint the scores of a run's teacher are in its store.

Of a managed teacher it is made of the model's files. Of an external one we have no files, and log-probs rounded into
an id would break at the edges of the rounding. So such a server is recognised instead: it gets the fingerprint of the
recorded teacher that reports the same settings and whose probe it reproduces.
"""

import asyncio
import dataclasses
import hashlib
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from verl_ext.run.file_hashes import hash_of_model
from verl_ext.teacher.client.served import ServerInfo
from verl_ext.teacher.config import TeacherConfig, usual_probe_tolerance
from verl_ext.teacher.store.fingerprint import KV_CACHE_DTYPE, TeacherFingerprint, fingerprint_of_files
from verl_ext.teacher.store.probe_record import ProbeRecord, probe_sequences, take_probe
from verl_ext.teacher.store.store import ScoreStore
from verl_ext.teacher.types import Scorer, TeacherUnavailableError


async def fingerprint_for_store(
    config: TeacherConfig, store: ScoreStore, urls: Sequence[str], scorer: Scorer | None, vocab_size: int
) -> TeacherFingerprint:
    """The fingerprint to give to `StoredScorer`. Call it once a run, when the servers at `urls` answer.

    `scorer` asks the servers themselves; replay needs neither it nor `urls`.

    Raises:
        ValueError: naming the key, if the model's files, the engine or a teacher to replay are not there.
        TeacherError: if an external server does not score the probe or say what it is.
    """
    if config.store_mode == "replay":
        return fingerprint_for_replay(config, store)
    if config.mode == "managed":
        # In a thread: the first time, it reads the whole model.
        found = await asyncio.to_thread(fingerprint_of_files, config, model_folder(config))
        store.remember_teacher(found.id, ProbeRecord(found).to_json())
        return found
    assert scorer is not None  # external servers come with one
    served = await served_fingerprint(urls, config)
    return await recognise(served, scorer, vocab_size, store, config.probe_tolerance)


def model_folder(config: TeacherConfig) -> Path:
    """Where the files of `teacher.model_path` lie: itself, or its snapshot in the Hugging Face cache.

    Raises:
        ValueError: if they are not on this machine.
    """
    assert config.model_path is not None  # TeacherConfig refuses mode=managed without it
    folder = Path(config.model_path).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download  # many packages, of no use to `--help`
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(config.model_path, local_files_only=True))
    except (OSError, HFValidationError) as error:  # LocalEntryNotFoundError is an OSError
        raise ValueError(
            f"teacher.model_path: {config.model_path} is neither a folder nor in the Hugging Face cache here, so its "
            "scores cannot be stored: download it, or set teacher.store_path=null"
        ) from error


async def served_fingerprint(urls: Sequence[str], config: TeacherConfig) -> TeacherFingerprint:
    """The settings that the first server of `urls` to answer reports; `model` is empty.

    Raises:
        TeacherUnavailableError: if none answers.
        TeacherResponseError: if an answer is not its engine's.
    """
    error: Exception | None = None
    for url in urls:
        async with ServerInfo(url, config) as server:
            try:
                found = await server.served()
            except TeacherUnavailableError as failure:
                error = failure
                continue
        return TeacherFingerprint(
            model="",
            quantization=found.quantization,
            dtype=found.dtype,
            kv_cache_dtype=found.kv_cache_dtype,
            engine=config.engine,
            engine_version=found.version,
            served_as=f"{found.model_path} {found.weight_version}",
        )
    raise TeacherUnavailableError(f"teacher.urls: none of {', '.join(urls)} reports what it serves: {error}")


async def recognise(
    served: TeacherFingerprint, scorer: Scorer, vocab_size: int, store: ScoreStore, tolerance: float | None = None
) -> TeacherFingerprint:
    """The fingerprint under which this server's scores are in `store`; a new one is recorded there.

    `scorer` asks the server itself. `tolerance` in nats at the worst token (`teacher.probe_tolerance`). It may narrow
    what is usual at the precision that the server says it has, and never widen it: a look-alike would take the scores.

    Raises:
        TeacherError: if it does not score the probe.
    """
    usual = usual_probe_tolerance(served.dtype, served.quantization)
    tolerance = usual if tolerance is None else min(tolerance, usual)
    now = await take_probe(scorer, served, probe_sequences(vocab_size))
    known = [record for record in _records(store) if _may_be(record.fingerprint, served)]
    near = [record for record in known if record.sequences == now.sequences]
    best = min(near, key=now.greatest_difference, default=None)
    if best is not None and best.greatest_difference(now) <= tolerance:
        return best.fingerprint
    digest = hashlib.sha256()
    for row in now.logprobs:
        digest.update(struct.pack(f"<{len(row)}f", *row))
    found = dataclasses.replace(served, model=digest.hexdigest())
    store.remember_teacher(found.id, dataclasses.replace(now, fingerprint=found).to_json())
    return found


def _may_be(known: TeacherFingerprint, served: TeacherFingerprint) -> bool:
    """Whether a recorded external teacher may be the one that is served, as far as they say.

    Of another engine too, in float32: two that agree on the probe there agree on every token. Below, rounding alone
    makes as much of a difference as another model does.
    """
    alike = dataclasses.replace(known, model="")
    if known.engine != served.engine and served.dtype == "float32" and served.quantization is None:
        version, cache = served.engine_version, served.kv_cache_dtype  # each engine's own words
        alike = dataclasses.replace(alike, engine=served.engine, engine_version=version, kv_cache_dtype=cache)
    return alike == served


def fingerprint_for_replay(config: TeacherConfig, store: ScoreStore) -> TeacherFingerprint:
    """The one teacher in `store` that `config` can mean. The engine's version is not compared: it need not be there.

    Raises:
        ValueError: naming the key, if there is none or more than one.
    """
    wanted: dict[str, Any] = {}
    if config.mode == "managed":
        wanted = {
            "model": hash_of_model(model_folder(config)),
            "quantization": config.quantization,
            "dtype": config.dtype,
            "kv_cache_dtype": KV_CACHE_DTYPE,
            "engine": config.engine,
            "extra_args": tuple(config.extra_args),
        }
    known = [record.fingerprint for record in _records(store)]
    fitting = [found for found in known if wanted.items() <= found.to_dict().items()]
    if len(fitting) != 1:
        raise ValueError(
            f"teacher.store_path: {len(fitting)} of the {len(known)} teachers with scores in {store.path} are the "
            "configured one, and store_mode=replay needs exactly one: give another folder or score with read_write"
        )
    return fitting[0]


def _records(store: ScoreStore) -> list[ProbeRecord]:
    return [ProbeRecord.from_json(record) for record in store.teachers().values()]
