"""What is kept on disk: card, checkpoint, model file, pretrained weights, loading, unfolding."""
