"""Is an external server's model the teacher that the settings name? It is asked, and its answer compared."""

import asyncio
import re
from pathlib import Path

from verl_ext.checks.context import Context
from verl_ext.checks.finding import OK, WARN, Finding
from verl_ext.run.file_hashes import same_weights
from verl_ext.run.models import chat_text
from verl_ext.teacher.client.served import ServerInfo
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.engines.engine import Served
from verl_ext.teacher.types import TeacherError, TeacherResponseError

NOT_OURS = "not asked: no server of others is"
COMPARED_ROWS = 16
"""Rows whose teacher prompts the server's tokenizer reads too."""
SPELLINGS = "Ünïcode ünd 漢字, العربية, 12345 \t\n  x<tool_call></think> don't \U0001f600"
"""What tokenizers of two families split differently, or write with ids of their own."""
HUB_CACHE = re.compile(r".*/models--(?P<owner>[^/]+)--(?P<name>[^/]+)/snapshots/[^/]+")


def model(context: Context, name: str) -> Finding:
    """It serves the model that `teacher.model_path` names, at the precision that is allowed for."""
    teacher = context.teachers[name]
    if teacher.mode != "external" or teacher.store_mode == "replay":
        return Finding(OK, NOT_OURS)
    try:
        served = {url: asyncio.run(_served(url, teacher)) for url in teacher.urls}
    except TeacherResponseError as error:
        return Finding(WARN, str(error), "make sure yourself that it serves teacher.model_path")
    except TeacherError as error:
        raise ValueError(f"teacher.urls: {error}; start the server, or set teacher.mode=managed") from None
    for url, found in served.items():
        if teacher.model_path is not None and not is_named(teacher.model_path, found):
            raise ValueError(
                f"teacher.urls: {url} serves {found.model_path}, and teacher.model_path={teacher.model_path}; give "
                "teacher.model_path the model that is served, or the URL of a server of that model"
            )
        if teacher.dtype == "float32" and (found.dtype, found.quantization) != ("float32", None):
            how = found.quantization or found.dtype
            raise ValueError(
                f"teacher.dtype=float32: {url} serves in {how}, whose rounding is beyond what float32 allows; set "
                f"teacher.dtype={'auto' if how == 'fp8' else how}"
            )
    first, *others = dict.fromkeys((found.model_path, found.weight_version) for found in served.values())
    if others:
        raise ValueError(
            f"teacher.urls: servers of different models: {first[0]} (weights {first[1]}) and {others[0][0]} (weights "
            f"{others[0][1]}); all must serve the same"
        )
    return Finding(OK, f"{first[0]}, weights {first[1]}", numbers={url: vars(found) for url, found in served.items()})


async def _served(url: str, teacher: TeacherConfig) -> Served:
    async with ServerInfo(url, teacher) as server:
        return await server.served()


def is_named(said: str, served: Served) -> bool:
    """Whether `teacher.model_path` may mean what a server serves, whose folders need not be this machine's."""
    if said in (served.model_path, served.name):
        return True
    here, there = Path(said).expanduser(), Path(served.model_path)
    if here.is_dir() and there.is_dir():
        return same_weights(said, served.model_path)
    return bool(_short_names(said) & (_short_names(served.model_path) | _short_names(served.name)))


def _short_names(path: str) -> set[str]:
    """`Qwen3-4B` of `Qwen/Qwen3-4B`, of a folder of that name, and of its snapshot in the hub's cache."""
    cached = HUB_CACHE.fullmatch(path.rstrip("/"))
    return {cached["name"] if cached else Path(path.rstrip("/")).name}


def tokenizer(context: Context, name: str) -> Finding:
    """Its tokenizer makes the student's tokens of the rows' prompts, and of what tokenizers differ in."""
    teacher = context.teachers[name]
    if teacher.mode != "external" or teacher.store_mode == "replay":
        return Finding(OK, NOT_OURS)
    own = context.student_tokenizer
    rows = [context.rows[number] for number in context.numbers_of(name)[:COMPARED_ROWS]]
    texts = [SPELLINGS, *(chat_text(own, row["teacher_messages"], context.template_kwargs) for row in rows)]
    wanted = [own.encode(text, add_special_tokens=False) for text in texts]
    for url in teacher.urls:
        try:
            found = asyncio.run(_tokenize(url, teacher, texts))
        except TeacherError as error:
            fix = "start the server with its tokenizer, or make sure yourself that it is the student's"
            return Finding(WARN, f"{error}: its tokenizer cannot be compared", fix)
        if differing := [text for text, ours, its in zip(texts, wanted, found, strict=True) if ours != its]:
            raise ValueError(
                f"teacher.urls: the tokenizer of {url} makes other tokens than {context.student[0]}'s of "
                f"{len(differing)} of {len(texts)} texts, first {differing[0][:40]!r}; the teacher must share the "
                "student's vocabulary"
            )
    return Finding(OK, f"makes the student's tokens of {len(texts)} texts")


async def _tokenize(url: str, teacher: TeacherConfig, texts: list[str]) -> list[list[int]]:
    async with ServerInfo(url, teacher) as server:
        return await server.tokenize(texts)
