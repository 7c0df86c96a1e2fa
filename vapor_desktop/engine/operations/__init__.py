"""Recovery operations: what brings VMs up at the other site."""
