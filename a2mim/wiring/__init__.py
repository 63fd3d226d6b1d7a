"""How any network is opened: built by name, traced, measured, and given a place for the mask token."""
