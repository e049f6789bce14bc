"""Images: read, held in memory, and described so that a run keeps to its own."""
