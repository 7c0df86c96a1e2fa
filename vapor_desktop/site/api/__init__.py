"""The site's HTTPS API: one file per resource. Paths and bodies: ``docs/protocols.md``, ``model/wire/``."""
