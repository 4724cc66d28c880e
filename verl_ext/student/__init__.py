"""What leaves a run: Hugging Face folders, PEFT adapters, model cards."""
