"""What a chain becomes: one file a backend, quantization, and the proof that all of them agree."""
