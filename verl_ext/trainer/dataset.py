"""The rows that training reads are those that were checked (`data.custom_cls`)."""

import datasets
import numpy as np
from verl.utils.dataset.rl_dataset import RLHFDataset

from verl_ext.data.rows import check_rows


class CheckedRows(RLHFDataset):
    """verl's dataset on our reader, so that training sees what the doctor saw."""

    def _read_files_and_tokenize(self) -> None:
        rows = check_rows("data.train_files", list(self.original_data_files))
        if 0 < self.max_samples < len(rows):  # as verl draws them
            draw = np.random.default_rng(self.seed)
            chosen = (
                draw.choice(len(rows), self.max_samples, replace=False) if self.shuffle else range(self.max_samples)
            )
            rows = [rows[number] for number in chosen]
        self.dataframe = self.maybe_filter_out_long_prompts(datasets.Dataset.from_list(rows))
