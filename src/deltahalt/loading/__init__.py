"""Loading models: a hub id, a folder, a GGUF file, or the bundled model."""
