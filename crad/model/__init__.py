"""The CRAD network."""
