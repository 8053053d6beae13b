"""One codec for ranks and peers: messages on sockets, tensors in shared memory."""
