"""The demo: real weights made into a small mixture of experts, packed, verified and asked."""
