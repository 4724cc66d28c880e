"""A plugin of verl's, in a folder of a test: what is in TransferQueue when a step lets go of it."""

import os
from pathlib import Path

PLUGIN = '''
"""Every sample that a step has trained on, as it stands in TransferQueue, in one file a step."""
import os
from pathlib import Path

import torch
import transfer_queue as tq

clear = tq.kv_clear


def write_down(keys, partition_id):
    samples = [key for key in keys if key.count("_") == 2] if isinstance(keys, list) else []
    if partition_id == "train" and samples:
        data = tq.kv_batch_get(keys=samples, partition_id=partition_id)
        columns = {name: data[name].unbind() for name in data.keys() if isinstance(data[name], torch.Tensor)}
        rows = {key: {name: column[i] for name, column in columns.items()} for i, key in enumerate(samples)}
        folder = Path(os.environ["STEPS_FOLDER"])
        torch.save(rows, folder / f"{len(list(folder.iterdir())) + 1}.pt")
    return clear(keys=keys, partition_id=partition_id)


tq.kv_clear = write_down
'''


def write_plugin(folder: Path) -> dict[str, str]:
    """The environment of a run that writes what each step trained on into `folder/steps`, one file a step."""
    info, steps = folder / "plugin" / "steps_of_queue-1.0.dist-info", folder / "steps"
    info.mkdir(parents=True)
    steps.mkdir()
    (folder / "plugin" / "steps_of_queue.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: steps_of_queue\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[verl.plugins]\nsteps_of_queue = steps_of_queue\n")
    root = Path(__file__).parents[2]
    return {"PYTHONPATH": f"{folder}/plugin{os.pathsep}{root}", "STEPS_FOLDER": str(steps)}
