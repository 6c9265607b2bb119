"""V, the vision model: it turns frames into latent vectors and back."""
