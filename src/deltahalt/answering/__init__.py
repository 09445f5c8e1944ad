"""Answering questions about a document or a picture, and measuring what it took."""
