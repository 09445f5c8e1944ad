"""Code specific to Hugging Face transformers (the host): families, versions, and stand-ins for a model's parts."""
