"""Training, and training in a folder that can be resumed."""
