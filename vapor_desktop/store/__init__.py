"""The database and the secrets. The only package that imports SQLAlchemy, Alembic and keyring."""

from vapor_desktop.store.repository import SqlRepository
from vapor_desktop.store.secrets import FileSecrets, KeyringSecrets

__all__ = ["FileSecrets", "KeyringSecrets", "SqlRepository"]
