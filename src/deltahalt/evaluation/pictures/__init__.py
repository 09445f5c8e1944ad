"""Pictures drawn from seeds, questions about them, and model inputs of both; needs the extra `vision`."""
