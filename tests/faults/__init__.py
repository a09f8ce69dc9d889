"""What happens when things break: a harness of real processes, faults with seeds, and invariants that can see loss."""
