"""lm-evaluation-harness run from here: which tasks, where their data comes from, and result rows."""
