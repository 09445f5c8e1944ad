"""Run lm-evaluation-harness: select its tasks, read their data, and store the results as rows."""
