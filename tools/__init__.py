"""Scripts that build pages and run the paper's tables. In the repository's root: `python -m tools.NAME`."""
