"""What tests share: a small game, processes, scripts and their pictures."""
