"""Cost-optimized inference engine: bulk LLM requests on Kafka for the least money at a stated error bound."""

__version__ = "0.1.0"
