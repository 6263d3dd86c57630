"""Routed experts in memory: where they are, who reads them, who goes when room is needed."""
