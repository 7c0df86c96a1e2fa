"""The mover: carries the disks of one recovery point from a source host to the replica store of its peer.

``send_main`` is ``vapor-site mover`` at the source, ``receive_main`` the verb ``receive`` at the target.
"""
