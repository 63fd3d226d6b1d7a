"""One file for each group of commands: its arguments, and the call that they become. What works stands elsewhere."""
