"""Networks that are found by search: the space of architectures, their modules, the supernet they share."""
