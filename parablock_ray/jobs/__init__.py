"""Runs as jobs of a Ray cluster, over HTTP alone: sent there, followed, stopped, their run folder brought back."""
