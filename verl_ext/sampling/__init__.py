"""Who answers: vLLM in this process or a server, and the answers that are kept."""
