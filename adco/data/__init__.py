"""Pictures, their random views, and the batches of them."""
