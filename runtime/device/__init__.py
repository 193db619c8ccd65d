"""Memory of a device, copies, compiled kernels."""
