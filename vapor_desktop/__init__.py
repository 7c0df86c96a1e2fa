"""Vapor Desktop: site-to-site replication and disaster recovery for KVM/libvirt."""

__version__ = "0.1.0"
