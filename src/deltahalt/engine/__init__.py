"""Prompt tokens halt: the seam to the model, the decoder loop on fewer and fewer tokens, and the cache it leaves."""
