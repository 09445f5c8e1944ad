"""KV-stage methods, one a file: they compress the cache that a full prefill has left."""
