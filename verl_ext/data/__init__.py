"""What is trained on: sentences, conversations, rows, and how they are made."""
