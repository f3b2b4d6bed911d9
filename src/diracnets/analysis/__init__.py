"""One look into one network: signal by layer, scales by epoch, pruning."""
