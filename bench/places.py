"""Where the servers of a run are, for drivers other than EXAI's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Servers:
    """Where both servers are; a host that begins with a slash is a directory of sockets."""

    host: str
    port: int
    user: str
    password: str
    database: str
    redis_url: str

    def conninfo(self) -> str:
        """For psycopg."""
        from psycopg.conninfo import make_conninfo

        words = {"host": self.host, "port": self.port, "user": self.user, "dbname": self.database}
        # The schema of the user would be EXAI's, which has tables of the same names as LangGraph's.
        words["options"] = "-c search_path=public"
        return make_conninfo(**words, sslmode="disable", **({"password": self.password} if self.password else {}))

    def engine_url(self) -> Any:
        """For SQLAlchemy with asyncpg."""
        from sqlalchemy import URL

        where: dict[str, Any] = {"host": self.host, "port": self.port}
        if self.host.startswith("/"):
            where = {"query": {"host": self.host}}
        return URL.create(
            "postgresql+asyncpg",
            username=self.user,
            password=self.password or None,
            database=self.database,
            **where,
        )
