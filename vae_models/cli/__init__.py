"""The command line. It alone imports inside functions, so that its help is there at once."""
