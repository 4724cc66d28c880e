"""What a run needs in memory, worked out from its configuration alone: no weights, no engine, no network."""
