"""The data: episodes, the HDF5 shards they are kept in, latents, and samplers of frames and clips. Numpy only."""
