"""On-policy distillation for verl: one room for each thing that happens to the data, in its order."""
