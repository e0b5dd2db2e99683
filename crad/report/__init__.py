"""What a person sees of a run: results.json, tables and pictures."""
