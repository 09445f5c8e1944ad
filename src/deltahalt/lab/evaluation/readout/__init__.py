"""Models without a decode: what embeddings and relevance scores lose under policies, beside the full model's own."""
