"""The settings of a run: how they are written, where they come from, and those of a comparison. Nothing here needs
torch, so that the command line shows its help at once."""
