"""On-policy distillation for verl: one room for each thing that happens to the data, in its order."""

import logging

# Libraries that are imported beside us raise the root logger to errors; a warning of ours is meant to be read.
logging.getLogger(__name__).setLevel(logging.WARNING)
