"""Pictures drawn from seeds, questions about them, and methods' accuracy on both. Drawing needs the extra `vision`."""
