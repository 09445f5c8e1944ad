"""Pictures of measured rows: a figure reads rows and never runs a model."""
