"""Device, precision and environment."""
