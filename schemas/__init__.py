"""The records that travel on the topics: frozen, versioned, and nothing else."""
