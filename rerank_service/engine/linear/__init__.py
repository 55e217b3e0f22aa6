"""Linear layers for each kind of processor and precision, and their calibration."""
