"""What ``check`` looks at before a run: every row, every label, and one training step."""
