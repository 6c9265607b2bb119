"""M: the kinds of memory. Each has its network, its cell for acting and its form for dreaming."""
