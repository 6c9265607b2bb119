"""C: linear, or with one hidden layer; and bases to evolve it in. numpy only."""
