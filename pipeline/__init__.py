"""Pure decisions, one module per stage: no I/O, no clocks, no randomness, no asyncio."""
