"""Using an exported detector, without PyTorch: NumPy, Pillow and a runtime are all it needs."""
