"""What is made of trained VAEs: metrics, pictures and reports."""
