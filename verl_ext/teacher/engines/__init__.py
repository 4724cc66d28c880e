"""What differs between the servers that score: SGLang's and vLLM's, each in one object."""
