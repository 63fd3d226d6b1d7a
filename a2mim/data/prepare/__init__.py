"""What is done with data before a run: writing, checking, listing and resharding shards, measuring statistics."""
