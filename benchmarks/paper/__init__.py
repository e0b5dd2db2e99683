"""The paper's tables and figures, and experiments of our own, by one command each."""
