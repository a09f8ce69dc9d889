"""Runs the stages: Faust agents, the topology, the worker, the composition root."""
