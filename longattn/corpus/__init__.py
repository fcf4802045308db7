"""Raw files -> documents: listing, splits, and readers of each format."""
