"""The database and the secrets. The only package that imports SQLAlchemy, Alembic and keyring."""

from vapor_desktop.store.repository import SqlRepository

__all__ = ["SqlRepository"]
