"""The VAE and its parts."""
