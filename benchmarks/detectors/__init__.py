"""CRAD beside other detectors, on the same features and by the same metrics."""
