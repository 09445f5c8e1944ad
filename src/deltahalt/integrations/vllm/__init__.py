"""Halting inside vLLM, as a plugin: docs/vllm.md."""
