"""A proxy between an application and its database, which can cut the connection at COMMIT."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

import pytest
from coverage import Coverage
from sqlalchemy import Engine, create_engine

Cut = Literal["before", "after", "midway", "half-open", "never"]


class Proxy:
    """Forwards what goes over its connections, until it sees COMMIT.

    ``cut`` says what it does then, once: "before" drops the connection, and the server never hears of the COMMIT;
    "after" passes it on, waits for the answer, and drops that with the connection; "midway" does not wait for it;
    "half-open" drops the application's side alone, and the server waits.
    """

    def __init__(self, connect: Callable[[], socket.socket], word: bytes) -> None:
        self._connect = connect
        self._word = word
        self.cut: Cut = "never"
        self.cuts = 0
        self.refusing = False
        self._kept: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.refusing:
                    client.close()
                    continue
                threading.Thread(target=self._serve, args=(client, self._connect()), daemon=True).start()

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        with selectors.DefaultSelector() as selector, suppress(OSError):
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            while True:
                for key, _ in selector.select():
                    source: socket.socket = key.fileobj  # type: ignore[assignment] # it is what was registered
                    data = source.recv(65536)
                    if source is client and self.cut != "never" and self._word in data:
                        self._cut(client, server, data)
                        return
                    if not data:
                        client.close()
                        server.close()
                        return
                    key.data.sendall(data)

    def _cut(self, client: socket.socket, server: socket.socket, data: bytes) -> None:
        cut, self.cut = self.cut, "never"
        if cut == "after":
            server.sendall(data)
            # The answer has come, so it is done.
            server.recv(65536)
        if cut == "midway":
            server.sendall(data)
        if cut in ("half-open", "midway"):
            self._kept.append(server)
        else:
            server.close()
        self.cuts += 1
        client.close()

    def close(self) -> None:
        """Let go of everything."""
        self._listener.close()
        for server in self._kept:
            server.close()


def _connector(engine: Engine) -> Callable[[], socket.socket]:
    url = engine.url
    folder = url.query.get("host")
    if isinstance(folder, str):
        path = str(Path(folder) / f".s.PGSQL.{url.query.get('port', 5432)}")

        def connect() -> socket.socket:
            server = socket.socket(socket.AF_UNIX)
            server.connect(path)
            return server

        return connect
    return lambda: socket.create_connection((url.host or "127.0.0.1", url.port or 5432))


def through_proxy(engine: Engine) -> Iterator[tuple[Engine, Proxy]]:
    """An engine on the same database, whose connections go through a proxy."""
    # MySQL's client begins with SET AUTOCOMMIT; 3 is its command for a query.
    word = b"\x03COMMIT" if engine.dialect.name in ("mysql", "mariadb") else b"COMMIT"
    proxy = Proxy(_connector(engine), word)
    query = {name: value for name, value in engine.url.query.items() if name not in ("host", "port")}
    url = engine.url.set(host="127.0.0.1", port=proxy.port, query=query)
    proxied = create_engine(url, pool_size=2, max_overflow=0)
    try:
        yield proxied, proxy
        assert proxied.pool.checkedout() == 0  # type: ignore[attr-defined] # it is a QueuePool
    finally:
        proxied.dispose()
        proxy.close()


@pytest.fixture
def proxied(postgresql: Engine) -> Iterator[tuple[Engine, Proxy]]:
    """PostgreSQL behind a proxy."""
    yield from through_proxy(postgresql)


@pytest.fixture
def proxied_mariadb(mariadb: Engine) -> Iterator[tuple[Engine, Proxy]]:
    """MariaDB behind a proxy."""
    yield from through_proxy(mariadb)


@pytest.fixture
def unmeasured() -> Iterator[None]:
    """Lines that the test runs do not count as covered: by luck is not enough, and measuring takes most of its time."""
    coverage = Coverage.current()
    if coverage is not None:
        coverage.stop()
    yield
    if coverage is not None:
        coverage.start()
