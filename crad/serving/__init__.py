"""A trained detector behind HTTP."""
