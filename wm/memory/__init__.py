"""M, the MDN-RNN: the network (`mdnrnn`, torch) and its LSTM for acting (`cell`, numpy only)."""
