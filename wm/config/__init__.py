"""Every number of the project, once: seeds, bounds, the configs of each method, presets."""
