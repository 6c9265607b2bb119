"""The dream: M as an environment, alone, for populations and for measuring it."""
