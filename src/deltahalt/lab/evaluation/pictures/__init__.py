"""Pictures drawn from seeds, questions about them, and what methods make of both; to draw needs the extra `vision`."""
