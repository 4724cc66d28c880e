"""Is it the teacher that was recorded? By the hash of its files and by what it says about fixed sequences."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from verl_ext.checks.finding import FAIL, OK, Finding
from verl_ext.run.file_hashes import hash_of_model
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.store.fingerprint import TeacherFingerprint, fingerprint_of_files
from verl_ext.teacher.store.identity import model_folder, served_fingerprint
from verl_ext.teacher.store.probe_record import ProbeRecord, probe_sequences, take_probe
from verl_ext.teacher.types import Scorer


def judge_record(then: ProbeRecord, now: ProbeRecord, tolerance: float) -> Finding:
    """`tolerance` in nats, of the probe's greatest difference. Both the hash and the probe must be as they were."""
    changed = {
        key: (value, now.fingerprint.to_dict()[key])
        for key, value in then.fingerprint.to_dict().items()
        if value != now.fingerprint.to_dict()[key]
    }
    gap = then.greatest_difference(now)
    numbers = {"greatest_nats": gap, "changed": changed}
    by_probe = f"its probe is off by up to {gap:.1e} nats"
    fix = "serve the recorded teacher, or delete doctor.record's file to record this one"
    if "model" in changed:
        before, after = (str(value)[:12] for value in changed["model"])
        return Finding(FAIL, f"another teacher: its files hash to {after}, were {before}; {by_probe}", fix, numbers)
    if gap > tolerance:
        named = f"; {', '.join(changed)} changed" if changed else ""
        return Finding(FAIL, f"another teacher: {by_probe}, allowed are {tolerance:g}{named}", fix, numbers)
    named = f"; changed, without effect: {', '.join(changed)}" if changed else ""
    return Finding(OK, f"{now.fingerprint.id}, as recorded; {by_probe}{named}", numbers=numbers)


async def check_record(
    file: str, teacher: TeacherConfig, urls: Sequence[str], scorer: Scorer, vocab_size: int, tolerance: float
) -> Finding:
    """Compare with the record, or write it where there is none.

    Raises:
        ValueError: if the file is no record, or the teacher's files cannot be read.
        TeacherError: if the teacher does not score the probe or say what it is.
    """
    fingerprint = await fingerprint_now(teacher, urls)
    path = Path(file)
    if not file or not path.is_file():
        now = await take_probe(scorer, fingerprint, probe_sequences(vocab_size))
        if not file:
            return Finding(OK, f"{fingerprint.id}; not recorded (doctor.record is empty)", numbers=_numbers(now))
        now.save(path)
        return Finding(OK, f"{fingerprint.id} recorded in {file}", numbers=_numbers(now))
    then = ProbeRecord.load(path)
    return judge_record(then, await take_probe(scorer, fingerprint, then.sequences), tolerance)


async def fingerprint_now(teacher: TeacherConfig, urls: Sequence[str]) -> TeacherFingerprint:
    """Of the files of a managed teacher; of an external one what it says, and its files where they are here too."""
    if teacher.mode == "managed":
        return fingerprint_of_files(teacher, model_folder(teacher))
    served = await served_fingerprint(urls, teacher)
    folder = Path(teacher.model_path or "").expanduser()
    return replace(served, model=hash_of_model(folder)) if folder.is_dir() else served


def _numbers(record: ProbeRecord) -> dict[str, object]:
    return {"fingerprint": record.fingerprint.to_dict(), "logprobs": record.logprobs}
