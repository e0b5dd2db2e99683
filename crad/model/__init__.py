"""The network: memories of normal features, and what fuses them."""
