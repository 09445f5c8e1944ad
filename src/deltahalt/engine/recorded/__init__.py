"""Generated tokens whose layers run as one recorded CUDA graph."""
