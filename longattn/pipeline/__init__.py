"""The run: its stages, the executors that run them, and what people see meanwhile."""
