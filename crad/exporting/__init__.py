"""Making files of a trained detector that other programs run, and checking them."""
