"""What may be shown of text that others chose."""
