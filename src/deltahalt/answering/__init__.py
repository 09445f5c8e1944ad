"""Answers to questions about a document or a picture, with their time, FLOPs and cache size."""
