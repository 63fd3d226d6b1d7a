"""Opens any network: builds it by name, traces and measures it, and finds where the mask token enters."""
