"""A run with a model of each family passes the cheap checks; the page of families is the one that was run."""

import dataclasses
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_student import ROW
from transformers import AutoConfig

from benchmarks.arms.family_models import FAMILIES, write_family
from verl_ext.checks.run import check

PAGE = Path(__file__).parents[3] / "docs/models.md"


@pytest.fixture(params=FAMILIES)
def family(request, pair):
    """Name and folder of a family's model."""
    folder = pair.scratch / "model"
    write_family(request.param, folder, pair.student)
    return request.param, folder


def test_every_family_may_train_and_refuses_a_role_that_its_template_does(compose_pair, family, pair):
    name, folder = family
    assert AutoConfig.from_pretrained(folder).model_type == FAMILIES[name].model_type
    assert check(compose_pair(f"student.path={folder}"))
    row = ROW | {"teacher_messages": [{"role": "system", "content": "be short"}, *ROW["prompt"]]}
    pq.write_table(pa.Table.from_pylist([row] * 32), pair.scratch / "system.parquet")
    config = compose_pair(f"student.path={folder}", f"data.train_files={pair.scratch}/system.parquet")
    if "raise_exception" in FAMILIES[name].template:
        with pytest.raises(ValueError, match="role"):
            check(config)
    else:
        assert check(config)


def test_the_page_has_a_row_for_every_family():
    rows = dict(re.findall(r"^\| ([\w.]+) \| (\w+) \|", PAGE.read_text(), re.MULTILINE))
    assert rows == {name: family.model_type for name, family in FAMILIES.items()}
    assert len({dataclasses.astuple(family) for family in FAMILIES.values()}) == len(FAMILIES)
