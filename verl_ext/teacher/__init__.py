"""The teacher: an SGLang server that scores every token the student sampled."""
