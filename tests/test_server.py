"""The local server: only this machine, only its folder, whatever is asked."""

import errno
import http.client
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from wm.run.errors import UserError
from wm.show.server import ADDRESS, LocalServer

SECRET = b"not to be served"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LocalServer]:
    folder = tmp_path / "play"
    (folder / "runtime").mkdir(parents=True)
    (folder / "index.html").write_text("<p>the page</p>")
    (folder / "runtime" / "a b.js").write_text("export {};")
    (folder / ".hidden").write_bytes(SECRET)
    (tmp_path / "secret").write_bytes(SECRET)
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "secret").write_bytes(SECRET)
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "linked").symlink_to(tmp_path / "beside")
    server = LocalServer(folder, 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(10)


def get(server: LocalServer, path: str, method: str = "GET") -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection(ADDRESS, server.server_port, timeout=30)
    connection.request(method, path)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, answer.headers["Content-Type"], body


def raw(server: LocalServer, request: bytes) -> bytes:
    """What comes back for these very bytes."""
    with socket.create_connection((ADDRESS, server.server_port), timeout=30) as client:
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        found = b""
        while part := client.recv(65536):
            found += part
        return found


def test_files_and_their_types(server: LocalServer) -> None:
    page = (200, "text/html; charset=utf-8", b"<p>the page</p>")
    assert get(server, "/") == get(server, "/index.html") == get(server, "/?start=3") == page
    assert get(server, "/runtime/a%20b.js") == (200, "text/javascript; charset=utf-8", b"export {};")
    assert get(server, "/", "HEAD") == (*page[:2], b"")


def test_only_this_machine_can_reach_it(server: LocalServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert server.url == f"http://127.0.0.1:{server.server_port}/"


@pytest.mark.parametrize(
    "path",
    [
        *("/secret", "/../secret", "/../../secret", "/runtime/../../secret", "/runtime/../index.html", "/./index.html"),
        *("/%2e%2e/secret", "/..%2fsecret", "/%2e%2e%2fsecret", "/..%5csecret", "/..\\secret", "/....//secret"),
        *("/%252e%252e/secret", "/%c0%ae%c0%ae/secret", "/..;/secret", "/..%00/secret", "/index.html%00", "//secret"),
        *("/link", "/linked/secret", "/.hidden", "/runtime", "/runtime/", "/%", "/%ff%fe", "/" + "a/" * 20_000),
    ],
)
def test_nothing_but_the_folders_files(server: LocalServer, path: str) -> None:
    found = raw(server, b"GET " + path.encode() + b" HTTP/1.0\r\n\r\n")
    assert found.startswith((b"HTTP/1.0 404", b"HTTP/1.0 414"))
    assert SECRET not in found


def test_absolute_paths_are_names_like_any_other(server: LocalServer, tmp_path: Path) -> None:
    for path in (f"{tmp_path}/secret", f"/{tmp_path}/secret", f"file://{tmp_path}/secret", "http://example.org/"):
        found = raw(server, b"GET " + path.encode() + b" HTTP/1.0\r\n\r\n")
        assert found.startswith(b"HTTP/1.0 404")
        assert SECRET not in found


@pytest.mark.parametrize(
    "request_",
    [
        *(b"", b"\r\n\r\n", b"\0" * 1000, bytes(range(256)) * 8, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"),
        *(b"GET / HTTP/1.0\r\n" + b"a: b\r\n" * 500 + b"\r\n", b"GET /" + b"a" * 200_000 + b" HTTP/1.0\r\n\r\n"),
        *(b"GET / HTTP/1.0\r\nbroken", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"GET \xff\xfe HTTP/1.0\r\n\r\n"),
        *(b"POST / HTTP/1.0\r\nContent-Length: 99999999999999999999\r\n\r\n", b"DELETE /index.html HTTP/1.0\r\n\r\n"),
        *(b"GET http://[ HTTP/1.0\r\n\r\n", b"GET / HTTP/1.0\r\nContent-Length: -1\r\n\r\n", b"A" * 300_000),
    ],
)
def test_malformed_requests_are_survived(
    server: LocalServer, request_: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    try:
        found = raw(server, request_)
    except OSError as error:  # it has hung up while we still sent
        if not isinstance(error, ConnectionError) and error.errno != errno.ENOTCONN:
            raise
        found = b""
    assert SECRET not in found
    assert get(server, "/")[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_a_client_that_only_waits_keeps_nobody_waiting(server: LocalServer) -> None:
    with socket.create_connection((ADDRESS, server.server_port)) as idle:
        idle.sendall(b"GET / HT")
        assert get(server, "/")[0] == 200


def test_clients_that_go_away_are_no_errors(
    server: LocalServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "play" / "large.bin").write_bytes(bytes(20_000_000))
    client = socket.create_connection((ADDRESS, server.server_port))
    client.sendall(b"GET /large.bin HTTP/1.0\r\n\r\n")
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset instead of a farewell
    client.close()
    assert get(server, "/")[0] == 200
    for thread in threading.enumerate():
        if "process_request" in thread.name:
            thread.join(10)
    assert capfd.readouterr().err == ""


def test_ports(server: LocalServer, tmp_path: Path) -> None:
    port = server.server_port
    with pytest.raises(UserError, match=rf"^port {port} is in use: choose another --port, or --port 0"):
        LocalServer(tmp_path, port)
    for none in (-1, 65536):
        with pytest.raises(UserError, match=rf"--port {none} is not a port"):
            LocalServer(tmp_path, none)
