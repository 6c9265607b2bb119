"""M, the MDN-RNN: the network (`mdnrnn`) and its `training` in torch, its LSTM for acting (`cell`) in numpy only."""
