"""A local web server of one static folder, reachable from this machine only."""

from __future__ import annotations

import errno
import sys
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from wm.run.errors import UserError

ADDRESS = "127.0.0.1"
"""Only this machine can reach it."""

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
}
"""Content types by suffix. They are set here since a system's list may lack types that browsers require."""


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD with the folder's files, and other requests with the base class's error.

    A request never becomes a path: its name is looked up among the names of the existing files.
    """

    timeout = 30  # seconds that a client may keep a thread waiting
    server_version, sys_version = "wm", ""

    def __init__(self, *args: Any, folder: Path) -> None:
        self._folder = folder
        super().__init__(*args)

    def do_GET(self) -> None:
        """The file, or 404."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """The file's headers, or 404."""
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        asked = unquote(self.path.partition("?")[0]).removeprefix("/") or "index.html"
        file = servable(self._folder).get(asked)
        try:
            body = file.read_bytes() if file else None
        except OSError:  # deleted since the look-up
            body = None
        if file is None or body is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", TYPES.get(file.suffix, "application/octet-stream"))
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-cache")  # the page of another run has the same address
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Logs nothing, since each page would be a dozen lines."""


class LocalServer(ThreadingHTTPServer):
    """Serves one folder on 127.0.0.1 until it is interrupted."""

    daemon_threads = True  # an open connection does not keep the process alive

    def __init__(self, folder: Path, port: int) -> None:
        """Takes the port; `serve_forever` then serves.

        Args:
            folder: What is served.
            port: 0 for any free one.

        Raises:
            UserError: The port is in use, not allowed, or out of range.
        """
        if not 0 <= port < 65536:
            raise UserError(f"--port {port} is not a port: give 1 to 65535, or 0 for any free one.")
        try:
            super().__init__((ADDRESS, port), partial(_Handler, folder=folder))
        except OSError as error:
            why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be opened ({error.strerror})"
            raise UserError(f"port {port} {why}: choose another --port, or --port 0 for any free one.") from error

    @property
    def url(self) -> str:
        """The address for a browser."""
        return f"http://{ADDRESS}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores a disconnected client; any other error shows its traceback and ends that request only."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def servable(folder: Path) -> dict[str, Path]:
    """The regular files below a folder by relative name with slashes, without hidden files and links."""
    found = {file.relative_to(folder): file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()}
    return {name.as_posix(): file for name, file in found.items() if not any(p.startswith(".") for p in name.parts)}
