"""The acquisition as a function: for networks, images and training loops that are somebody else's."""
