"""What comes in: models, labelled images and how they become tensors."""
