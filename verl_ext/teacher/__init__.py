"""The teacher: a server, SGLang or vLLM, that scores every token the student sampled."""
