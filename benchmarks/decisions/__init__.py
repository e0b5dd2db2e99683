"""Whether thresholds keep what they promise, on images that no training has seen."""
