"""The ground floor: messages, codes, names, tensors, clocks. Pure, but for `net` and `process`."""
