"""The tiny pair: a small model that answers right with its prompt, and at random without it."""
