"""The data: episodes, their HDF5 shards, latents, and samplers of frames and clips. Numpy only."""
