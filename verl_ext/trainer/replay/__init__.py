"""Experience replay: samples of earlier steps are trained on again, drawn by priority.

`config.py` its settings, `buffer.py` what the trainer uses, which stands on `storage.py` and `sum_tree.py`. None of
these knows verl; `verl_ext/trainer/replaying.py` does.
"""
