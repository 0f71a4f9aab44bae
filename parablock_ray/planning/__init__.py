"""Before a run: its seconds, bytes and memory, from a few figures and the recurrence alone."""
