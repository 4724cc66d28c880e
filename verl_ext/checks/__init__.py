"""One list of checks: training refuses by it, the doctor shows it."""
