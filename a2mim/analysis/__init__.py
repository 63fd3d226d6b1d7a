"""Looking at what a network has learnt: pictures and measurements, never training."""
