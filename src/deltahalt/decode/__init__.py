"""Decode-stage methods, one a file: they make generated tokens cheaper and leave the prefill as it is."""
