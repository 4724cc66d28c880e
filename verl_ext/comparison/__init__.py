"""One experiment: several ways to train a student on the same rows, evaluated alike, each an ordinary run."""
