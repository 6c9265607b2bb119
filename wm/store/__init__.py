"""Episodes, their HDF5 shards, latents, starts of dreams, and samplers of frames and clips. numpy and h5py only."""
