"""What is specific to Hugging Face transformers: model families, versions, and replacing a part of a model."""
