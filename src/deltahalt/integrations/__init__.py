"""Where deltahalt meets other frameworks, one a file; each needs that framework installed beside it."""
