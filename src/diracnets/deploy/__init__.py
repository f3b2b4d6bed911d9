"""What is done with a model file: prediction and inspection."""
