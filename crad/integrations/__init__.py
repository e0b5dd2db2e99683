"""The detector as a part of other libraries."""
